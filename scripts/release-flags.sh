# Read by other scripts: how what is handed out is built. It names no folder of the machine that it was built on, so that the same
# sources can give the same bytes elsewhere. With RUSTFLAGS set, empty too, that counts instead.
target=$(${CARGO:-cargo} metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
RUSTFLAGS=${RUSTFLAGS-"--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}/registry/src=/registry --remap-path-prefix=$target=/target"}
export RUSTFLAGS
# Dates of files: that of the commit, or else of the year 2000.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 946684800)}
export SOURCE_DATE_EPOCH
