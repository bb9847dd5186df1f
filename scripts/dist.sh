#!/bin/sh
# Makes dist/graftwork-VERSION-TARGET.tar.gz: the C library as `make install` lays it out, to be unpacked anywhere, with licences,
# manual, examples and a BUILD-INFO. The same sources and tools give the same bytes. Needs what `make` needs, and GNU tar.
set -eu

cd "$(dirname "$0")/.."
. scripts/release-flags.sh
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
rustc=${RUSTC:-rustc}
triple=${CARGO_BUILD_TARGET:-$($rustc -vV | sed -n 's/^host: //p')}
name=graftwork-$version-$triple

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

# Linked anew, whatever an earlier build was asked for. $${pcfiledir}, where graftwork.pc lies, is for pkg-config: make reads two
# dollars as one.
${MAKE:-make} -s install OUT="$work/out" DESTDIR="$work" PREFIX="/$name" LIBDIR="/$name/lib" INCLUDEDIR="/$name/include" \
    DOCDIR="/$name/share/doc/graftwork" PC_PREFIX='$${pcfiledir}/../..'

library=$work/$name/lib/libgraftwork.so
{
    echo "version: $version"
    echo "abi: $(sed -n 's/^#define GW_ABI_VERSION //p' include/graftwork.h)"
    echo "target: $triple"
    # The newest of the symbols that are asked for.
    echo "glibc: $(readelf -VW "$library" | grep -o 'GLIBC_[0-9.]*' | sed 's/GLIBC_//' | sort -uV | tail -n 1) or newer"
    # What the compiler may use anywhere; kernels for AVX2, AVX-512 and NEON are chosen when a model is opened.
    # shellcheck disable=SC2086 # Flags are words.
    echo "cpu: $($rustc --print cfg --target "$triple" $RUSTFLAGS | sed -n 's/^target_feature="\(.*\)"/\1/p' | tr '\n' ' ' | sed 's/ $//')"
    echo "rustc: $($rustc --version)"
    echo "commit: $(git describe --always --dirty --abbrev=40 --exclude '*' 2>/dev/null || echo unknown)"
} >"$work/$name/BUILD-INFO"

mkdir -p dist
tar --sort=name --format=ustar --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX \
    -C "$work" -cf "$work/archive" "$name"
gzip -9n <"$work/archive" >"dist/$name.tar.gz"
echo "dist/$name.tar.gz"
