#!/bin/sh
# Installs the C library into an empty folder and uses it from there as programs do: shared and static, C and C++,
# pkg-config and CMake; looks at what the libraries export and need; runs the examples on SmolLM2. Needs a C and a C++
# compiler, make, pkg-config and binutils; CMake if there is one.
set -eu

cd "$(dirname "$0")/.."
repository=$PWD
CC=${CC:-cc}
CXX=${CXX:-c++}
c="-std=c11 -O1 -Wall -Wextra -Werror -pedantic"
cxx="-std=c++17 -O1 -Wall -Wextra -Werror -pedantic"
cargo=${CARGO:-cargo}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
prefix=$work/prefix
bin=$work/bin
mkdir "$bin"

say() { printf '%s\n' "test-package: $*"; }
fail() {
    printf '%s\n' "test-package: $*" >&2
    exit 1
}
# Two files that must be equal.
same() { diff "$1" "$2" >&2 || fail "$3"; }
# A file that must contain a text.
holds() {
    grep -qF -- "$2" "$1" || {
        cat "$1" >&2
        fail "$(basename "$1") does not say: $2"
    }
}

say "installing"
make install PREFIX="$prefix" >"$work/make.log" 2>&1 || {
    cat "$work/make.log" >&2
    fail "make install failed"
}
shared=$prefix/lib/libgraftwork.so
static=$prefix/lib/libgraftwork.a
export PKG_CONFIG_PATH="$prefix/lib/pkgconfig"
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
[ "$(pkg-config --modversion graftwork)" = "$version" ] || fail "the version of graftwork.pc is not $version"

say "symbols"
# What the compiler sees declared, not what a pattern of the Makefile finds.
$CC -E -P -I"$prefix/include" -x c "$prefix/include/graftwork.h" | tr '\n;' ' \n' | grep -o 'gw_[a-z0-9_]* *(' |
    tr -d ' (' | sort -u >"$work/declared"
[ -s "$work/declared" ] || fail "the header declares nothing"
nm -D --defined-only "$shared" | grep -v ' A GRAFTWORK_' | sed 's/.* //; s/@.*//' | sort >"$work/exported"
same "$work/declared" "$work/exported" "the shared library does not export what the header declares"
nm -g --defined-only "$static" | sed -n 's/^[0-9a-f]* . //p' | sort >"$work/global"
same "$work/declared" "$work/global" "the static library does not define what the header declares"

say "dynamic section"
readelf -dW "$shared" >"$work/dynamic"
holds "$work/dynamic" "Library soname: [libgraftwork.so.$(sed -n 's/^#define GW_ABI_VERSION //p' include/graftwork.h)]"
sed -n 's/.*(NEEDED).*\[\(.*\)\].*/\1/p' "$work/dynamic" >"$work/needed"
if grep -vE '^(libc|libm|libpthread|ld-linux[a-z0-9_-]*)\.so\.[0-9]+$' "$work/needed" >&2; then
    fail "the shared library needs more than libc, libm and libpthread"
fi
if grep -E 'TEXTREL|RPATH|RUNPATH' "$work/dynamic" >&2; then fail "text relocations or search paths"; fi
holds "$work/dynamic" "NOW NODELETE"
readelf -lW "$shared" >"$work/segments"
holds "$work/segments" "GNU_RELRO"
grep 'GNU_STACK' "$work/segments" | grep -q 'RW ' || fail "the stack is executable"

say "examples"
for file in ffi/examples/*.c ffi/examples/*.cpp; do
    [ "$(wc -l <"$file")" -lt 150 ] || fail "$file is too long to be an example"
done
# Compiles an installed example against both libraries: NAME SUFFIX COMPILER FLAGS...
build() {
    name=$1 source=$prefix/share/doc/graftwork/examples/$1.$2 out=$bin/$1-$2
    shift 2
    # shellcheck disable=SC2046 # Flags are words.
    "$@" "$source" -o "$out" $(pkg-config --cflags --libs graftwork) -Wl,-rpath,"$prefix/lib"
    # shellcheck disable=SC2046
    "$@" "$source" -o "$out-static" \
        $(pkg-config --static --cflags --libs graftwork | sed s/-lgraftwork/-l:libgraftwork.a/)
    if readelf -dW "$out-static" | grep -q libgraftwork; then fail "$name is not linked statically"; fi
}
for name in chat swap batch loras tenants; do
    # shellcheck disable=SC2086
    build $name c $CC $c
done
for name in chat assistant; do
    # shellcheck disable=SC2086
    build $name cpp $CXX $cxx
done
# The C++ header twice in a unit, in two units of a program, under later standards.
for standard in c++17 c++20; do
    printf '#include <graftwork.hpp>\n#include <graftwork.hpp>\nvoid f();\nvoid f() {}\n' >"$work/one.cpp"
    printf '#include <graftwork.hpp>\nint main() { return graftwork::has_feature("lora") ? 0 : 1; }\n' >"$work/two.cpp"
    # shellcheck disable=SC2046,SC2086
    $CXX $cxx -std=$standard -Wconversion -Wshadow "$work/one.cpp" "$work/two.cpp" -o "$work/two" \
        $(pkg-config --cflags --libs graftwork) -Wl,-rpath,"$prefix/lib"
    "$work/two" || fail "no feature \"lora\""
done

say "manual"
# Each block of code in the manual is a part of a program that compiles.
awk -v to="$work/snippet" '
    /^```/ { if (out) { close(out); out = "" } else if ($0 == "```c") out = to (++n) ".c"; else if ($0 == "```cpp") out = to (++n) ".cpp"
             if (out ~ /c$/) print "#include <graftwork.h>\n#include <stdio.h>" >out
             if (out ~ /cpp$/) print "#include <graftwork.hpp>\n#include <iostream>" >out
             next }
    out { print >out }' docs/c-api.md
ls "$work"/snippet*.c "$work"/snippet*.cpp >/dev/null
for file in "$work"/snippet*.c; do
    # shellcheck disable=SC2046,SC2086
    $CC $c -c "$file" -o "$work/snippet.o" $(pkg-config --cflags graftwork)
done
for file in "$work"/snippet*.cpp; do
    # shellcheck disable=SC2046,SC2086
    $CXX $cxx -c "$file" -o "$work/snippet.o" $(pkg-config --cflags graftwork)
done

if command -v cmake >/dev/null; then
    say "CMake"
    mkdir "$work/cmake"
    cat >"$work/cmake/CMakeLists.txt" <<END
cmake_minimum_required(VERSION 3.15)
project(client LANGUAGES C CXX)
find_package(graftwork $version REQUIRED)
add_executable(shared "$repository/ffi/examples/chat.c")
target_link_libraries(shared PRIVATE graftwork::graftwork)
add_executable(static "$repository/ffi/examples/chat.cpp")
target_compile_features(static PRIVATE cxx_std_17)
target_link_libraries(static PRIVATE graftwork::static)
END
    { cmake -S "$work/cmake" -B "$work/cmake/build" -DCMAKE_PREFIX_PATH="$prefix" &&
        cmake --build "$work/cmake/build"; } >"$work/cmake.log" 2>&1 || {
        cat "$work/cmake.log" >&2
        fail "the CMake project does not build"
    }
    sed 's/find_package(graftwork [^ ]*/find_package(graftwork 99.0/' "$work/cmake/CMakeLists.txt" >"$work/future"
    mkdir "$work/newer" && mv "$work/future" "$work/newer/CMakeLists.txt"
    if cmake -S "$work/newer" -B "$work/newer/build" -DCMAKE_PREFIX_PATH="$prefix" >/dev/null 2>&1; then
        fail "the package claims to be version 99"
    fi
else
    say "CMake: skipped, there is none"
fi

say "answers"
model=$($cargo run --release --quiet -p graftwork-cli -- pull smollm2)
[ -f "$model" ] || fail "no model: $model"
tools=examples/adapters/tools-lora
sentiment=examples/adapters/sentiment-lora.gguf
call='{"name": "get_weather", "arguments": {"city": "Oslo", "unit": "celsius"}}'
base='The weather in Oslo in Celsius is:'
sky='The sky is blue because of a process called Rayleigh scattering'
# Runs a program: its output must be there, and nothing in its errors.
run() {
    log=$work/$1
    shift
    "$@" >"$log" 2>"$log.errors" || { cat "$log" "$log.errors" >&2; fail "$* failed"; }
    [ -s "$log.errors" ] && { cat "$log.errors" >&2; fail "$* complained"; }
    return 0
}
for kind in '' -static; do
    run chat "$bin/chat-c$kind" "$model" "Why is the sky blue?" </dev/null
    holds "$work/chat" "$sky"
    run chat-cpp "$bin/chat-cpp$kind" "$model" "Why is the sky blue?" </dev/null
    same "$work/chat" "$work/chat-cpp" "C and C++ answer differently"

    run swap "$bin/swap-c$kind" "$model" "$tools" "$sentiment"
    sed 's/ \[swap\] //' "$work/swap" >"$work/swap-joined"
    holds "$work/swap" " [swap] "
    holds "$work/swap-joined" "before the swap: $call"
    holds "$work/swap" "after the swap: negative"
    holds "$work/swap" "a second swap from the first generation: "

    run batch "$bin/batch-c$kind" "$model" "tools=$tools" "sentiment=$sentiment"
    holds "$work/batch" "base: $base"
    holds "$work/batch" "tools: $call"
    holds "$work/batch" "sentiment: negative"
    holds "$work/batch" " tokens of 3 answers in "

    run assistant "$bin/assistant-cpp$kind" "$model" "$tools" "What is the weather like in Oslo in celsius?" \
        "Find the area of a rectangle 12 wide and 7.5 high."
    holds "$work/assistant" "$call"
    holds "$work/assistant" "= rain in Oslo, told in celsius"
    holds "$work/assistant" "= 90.000000"
done
run no-call "$bin/assistant-cpp" "$model" "$sentiment" "What is the weather like in Oslo in celsius?"
holds "$work/no-call" "refused: expected a value, found \"negative\""
printf 'I live in Paris.\nIn which city do I live?\n' >"$work/said"
run talk "$bin/chat-c" "$model" <"$work/said"
run talk-cpp "$bin/chat-cpp" "$model" <"$work/said"
same "$work/talk" "$work/talk-cpp" "C and C++ converse differently"
sed -n 2p "$work/talk" | grep -q Paris || { cat "$work/talk" >&2; fail "the conversation is not remembered"; }

say "calls"
# What is no call of a function with what it takes is refused.
cat >"$work/calls" <<'END'

nothing
{"name": "get_weather"}
{"name": "get_weather", "arguments": {}}
{"name": "get_weather", "arguments": ["Oslo"]}
{"name": "get_weather", "arguments": "city"}
{"name": "get_weather", "arguments": {"city": 7}}
{"name": "get_weather", "arguments": {"city": null}}
{"name": "get_weather", "arguments": {"city": ["Oslo"]}}
{"name": "get_weather", "arguments": {"city": "Oslo", "unit": "kelvin"}}
{"name": "get_weather", "arguments": {"city": "Oslo", "day": "today"}}
{"name": "get_weather", "arguments": {"city": "Oslo", "city": "Rome"}}
{"name": "get_weather", "arguments": {"city": "Oslo"}, "then": "exit"}
{"name": "get_weather", "arguments": {"city": "Oslo",}}
{"name": "get_weather", "arguments": {"city": "Oslo"}} and more
{"name": "get_weather", "arguments": {"city": "Oslo"}
{"name": "get_weather", "arguments": {"city": "Os\lo"}}
{"name": "get_weather", "arguments": {"city": 'Oslo'}}
{"name": "system", "arguments": {"command": "ls"}}
{"name": ["get_weather"], "arguments": {"city": "Oslo"}}
{"name": "rectangle_area", "arguments": {"width": "1", "height": 2}}
{"name": "rectangle_area", "arguments": {"width": 1, "height": 02}}
{"name": "rectangle_area", "arguments": {"width": 1}}
{"name": "rectangle_area", "arguments": {"width": true, "height": 2}}
{"name": "rectangle_area", "arguments": {"width": 1e999, "height": 2}}
[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[
END
run refused "$bin/assistant-cpp" <"$work/calls"
[ "$(grep -c '^refused: ' "$work/refused")" = "$(grep -c '' "$work/calls")" ] && ! grep '^=' "$work/refused" >&2 || {
    cat "$work/refused" >&2
    fail "not refused"
}
cat >"$work/calls" <<'END'
{"name": "get_weather", "arguments": {"city": "Oslo"}}
 { "arguments" : { "unit" : "fahrenheit", "city" : "\"O\/s\\lo\"" } , "name" : "get_weather" }
{"name":"rectangle_area","arguments":{"height":-2.5e1,"width":4}}
END
run called "$bin/assistant-cpp" <"$work/calls"
printf '= rain in Oslo\n= rain in "O/s\\lo", told in fahrenheit\n= -100.000000\n' >"$work/expected"
same "$work/expected" "$work/called" "the assistant calls something else"

say "tenants"
mkdir "$work/loras"
"$bin/loras-c" "$repository/tests/golden/adapters/base" "$work/loras" 500
run tenants "$bin/tenants-c" "$repository/tests/golden/adapters/base" "$work/loras" 500 5000 verify
cat "$work/tenants"
holds "$work/tenants" "0 of 5000 answers differ from their single runs"
run tenants "$bin/tenants-c-static" "$repository/tests/golden/adapters/base" "$work/loras" 100 300 verify
holds "$work/tenants" "0 of 300 answers differ from their single runs"

say "errors"
# Runs a program that must end with 1 and say why: TEXT PROGRAM...
refuses() {
    text=$1 status=0
    shift
    "$@" >"$work/refused" 2>&1 </dev/null || status=$?
    [ "$status" = 1 ] || { cat "$work/refused" >&2; fail "$* ended with $status"; }
    holds "$work/refused" "$text"
}
refuses "chat: GW_ERR_NOT_FOUND: " "$bin/chat-c" "$work/no-such-file" hello
refuses "chat: GW_ERR_NOT_FOUND: " "$bin/chat-cpp" "$work/no-such-file" hello
refuses "chat: GW_ERR_FORMAT: " "$bin/chat-c" "$repository/Cargo.toml" hello
refuses "batch: GW_ERR_CONFLICT: " "$bin/batch-c" "$model" "a=$tools" "a=$tools"
refuses "tenants: GW_ERR_NOT_FOUND: " "$bin/tenants-c" "$repository/tests/golden/adapters/base" "$work/no-such-folder"
refuses "assistant: " "$bin/assistant-cpp" "$work/no-such-file" "$tools" hello

say "uninstalling"
make uninstall PREFIX="$prefix" >/dev/null
find "$prefix" -type f -o -type l >"$work/left"
[ -s "$work/left" ] && { cat "$work/left" >&2; fail "make uninstall left files behind"; }
say "done"
