#!/bin/sh
# Makes the archive of the C library twice, which must give the same bytes, unpacks it elsewhere and uses it from there: with pkg-config,
# shared and static, and with CMake if there is one. Needs what scripts/dist.sh needs, a C compiler and pkg-config.
#
#   RUSTFLAGS=     builds with the flags of other builds, which it shares then; folders of this machine stay in the library
set -eu

cd "$(dirname "$0")/.."
repository=$PWD
CC=${CC:-cc}
plain=${RUSTFLAGS+yes}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
say() { printf '%s\n' "test-dist: $*"; }
fail() {
    printf '%s\n' "test-dist: $*" >&2
    exit 1
}
# Runs a command and shows what it says only if it fails.
quiet() {
    "$@" >"$work/log" 2>&1 || {
        cat "$work/log" >&2
        fail "$* failed"
    }
}

say "making it, twice"
quiet sh scripts/dist.sh
archive=$(tail -n 1 "$work/log")
cp "$archive" "$work/first.tar.gz"
quiet sh scripts/dist.sh
cmp "$archive" "$work/first.tar.gz" || fail "two runs give different archives"
name=$(basename "$archive" .tar.gz)

say "unpacking"
mkdir "$work/else where"
tar -xzf "$archive" -C "$work/else where"
[ "$(ls "$work/else where")" = "$name" ] || fail "more than one folder"
# pkg-config and the shell part names at spaces; CMake does not.
ln -s "$work/else where/$name" "$work/root"
root=$work/root
for file in BUILD-INFO include/graftwork.h include/graftwork.hpp lib/libgraftwork.a lib/libgraftwork.so lib/pkgconfig/graftwork.pc \
    lib/cmake/graftwork/graftworkConfig.cmake share/doc/graftwork/LICENSE-MIT share/doc/graftwork/LICENSE-APACHE \
    share/doc/graftwork/THIRD-PARTY.md share/doc/graftwork/c-api.md share/doc/graftwork/examples/chat.c; do
    [ -s "$root/$file" ] || fail "missing: $file"
done
cat "$root/BUILD-INFO"
if grep -qE ': *$|: or newer' "$root/BUILD-INFO"; then fail "BUILD-INFO has gaps"; fi
for place in "$repository" "${CARGO_HOME:-$HOME/.cargo}/"; do
    [ "$plain" ] || ! grep -rlF "$place" "$root/" || fail "these files name $place"
done

say "pkg-config"
PKG_CONFIG_PATH=$root/lib/pkgconfig
export PKG_CONFIG_PATH
version=$(sed -n 's/^version: //p' "$root/BUILD-INFO")
abi=$(sed -n 's/^abi: //p' "$root/BUILD-INFO")
cat >"$work/version.c" <<'END'
#include <graftwork.h>
#include <stdio.h>
int main(void) { return printf("%s %u\n", gw_version(), (unsigned)gw_abi_version()) < 0; }
END
# Runs a program that must print the version.
tells() { [ "$("$@")" = "$version $abi" ] || fail "$* does not print $version $abi"; }
# Runs the example, which must say that there is no such model.
example() {
    if "$1" "$work/no-such-file" hello >"$work/log" 2>&1; then fail "$1 opened a file that is not there"; fi
    grep -q GW_ERR_NOT_FOUND "$work/log" || {
        cat "$work/log" >&2
        fail "$1 does not say that the file is not there"
    }
}
for source in "$work/version.c" "$root/share/doc/graftwork/examples/chat.c"; do
    bin=$work/$(basename "$source" .c)
    # shellcheck disable=SC2046 # Flags are words.
    "$CC" "$source" -o "$bin" $(pkg-config --cflags --libs graftwork) -Wl,-rpath,"$root/lib"
    # shellcheck disable=SC2046
    "$CC" "$source" -o "$bin-static" $(pkg-config --static --cflags --libs graftwork | sed s/-lgraftwork/-l:libgraftwork.a/)
done
tells "$work/version"
tells "$work/version-static"
example "$work/chat"
example "$work/chat-static"

if command -v cmake >/dev/null; then
    say "CMake"
    mkdir "$work/cmake"
    cat >"$work/cmake/CMakeLists.txt" <<END
cmake_minimum_required(VERSION 3.15)
project(client LANGUAGES C)
find_package(graftwork $version REQUIRED)
add_executable(version "$work/version.c")
target_link_libraries(version PRIVATE graftwork::graftwork)
add_executable(chat "$root/share/doc/graftwork/examples/chat.c")
target_link_libraries(chat PRIVATE graftwork::static)
END
    quiet cmake -S "$work/cmake" -B "$work/cmake/build" -DCMAKE_PREFIX_PATH="$work/else where/$name"
    quiet cmake --build "$work/cmake/build"
    tells "$work/cmake/build/version"
    example "$work/cmake/build/chat"
else
    say "CMake: skipped, there is none"
fi
say "done: $archive, $(wc -c <"$archive") bytes"
