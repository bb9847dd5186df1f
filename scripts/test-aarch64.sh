#!/bin/sh
# Runs the tests of the kernels on emulated aarch64 CPUs (QEMU): all that run kernels where NEON has the matrix product of 8-bit
# integers, which covers NEON without and with the dot product too; and where it has less, the tests of the vector operations,
# to see that such a CPU takes what it has. Takes a few minutes. Exits with 0 if all pass, with 77 if what it needs is not
# installed:
#
#   apt-get install qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross
#
# and a standard library for aarch64: `rustup target add aarch64-unknown-linux-gnu`, or on Debian
# `apt-get install rustc-web`, whose standard library for arm64 is then fetched with apt-get.
set -eu

cd "$(dirname "$0")/.."
triple=aarch64-unknown-linux-gnu
target=${CARGO_TARGET_DIR:-target}
work=$target/aarch64
mkdir -p "$work"
work=$(cd "$work" && pwd)
note() { echo "test-aarch64: $*"; }
missing() { echo "test-aarch64: no $*" >&2; exit 77; }

for tool in qemu-aarch64 aarch64-linux-gnu-gcc aarch64-linux-gnu-nm; do
    command -v $tool >/dev/null || missing $tool
done
[ -f /usr/aarch64-linux-gnu/include/stdlib.h ] || missing "C library for aarch64"

# Of the package with Debian's standard library for this machine, the same version for arm64. Unpacked here, with lists of packages of
# its own: nothing of the system changes.
fetch() {
    version=$(dpkg-query -W -f='${Version}' libstd-rust-web-dev 2>/dev/null) || return 1
    mkdir -p "$work/apt/lists/partial" "$work/apt/cache/archives/partial"
    apt() {
        apt-get -qq -o Dir::State::Lists="$work/apt/lists" -o Dir::Cache="$work/apt/cache" -o APT::Architectures::=arm64 \
            -o APT::Sandbox::User=root "$@"
    }
    apt update && (cd "$work/apt" && apt download "libstd-rust-web-dev:arm64=$version") || return 1
    rm -rf "$work/debian"
    dpkg -x "$work"/apt/libstd-rust-web-dev_*_arm64.deb "$work/debian"
    rm -r "$work/apt"
}

has_std() { [ -d "$1/lib/rustlib/$triple/lib" ]; }
RUSTC=${RUSTC:-rustc}
if ! has_std "$("$RUSTC" --print sysroot)"; then
    RUSTC=/usr/bin/rustc
    [ -x $RUSTC ] || missing "standard library for $triple"
    if ! has_std "$($RUSTC --print sysroot)"; then
        has_std "$work/debian/usr" || fetch || missing "standard library for $triple"
        export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS="--sysroot $work/debian/usr"
    fi
fi
export RUSTC
note "building with $("$RUSTC" --version)"

emulate() { # a CPU, a program and its arguments
    cpu=$1
    shift
    qemu-aarch64 -cpu "$cpu" -L /usr/aarch64-linux-gnu "$@"
}
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -cpu max -L /usr/aarch64-linux-gnu"
# Those that run kernels; for those within the library it would be built once more.
test="cargo test --release -p graftwork-kernels --target $triple"
for name in simd linear grid rows attention bottleneck; do test="$test --test $name"; done
$test --no-run 2>"$work/build.log" || { cat "$work/build.log" >&2; exit 1; }
program() { sed -n "s/.*Executable tests\/$1\.rs (\(.*\)).*/\1/p" "$work/build.log"; }

# A kernel that calls an intrinsic instead of containing it has lost its instruction set somewhere on the way.
if aarch64-linux-gnu-nm -C "$(program linear)" | grep -E ' t core::core_arch::|neon::(sdot|smmla)$'; then
    echo "test-aarch64: an intrinsic was not inlined" >&2
    exit 1
fi

# The first that were made for servers or phones with each.
for expected in "cortex-a53 portable neon" "cortex-a76 portable neon neondot" "max portable neon neondot neoni8mm"; do
    cpu=${expected%% *}
    GRAFTWORK_TEST_ISA=${expected##* } emulate "$cpu" "$(program simd)" --nocapture >"$work/$cpu.log" 2>&1 ||
        { cat "$work/$cpu.log" >&2; exit 1; }
    found=$(sed -n 's/.*instruction sets: //p' "$work/$cpu.log")
    note "$cpu: $found"
    [ "$found" = "${expected#* }" ] || { echo "test-aarch64: expected ${expected#* }" >&2; exit 1; }
done

GRAFTWORK_TEST_ISA=neoni8mm $test
note "all passed"
