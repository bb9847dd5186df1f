#!/bin/sh
# Runs two C programs under ThreadSanitizer: one whose threads submit, cancel and swap adapters at once
# (ffi/tests/c/stress.c), and one that lends its threads in every way, bad ones too (ffi/tests/c/executor.c). The library,
# its dependencies, the standard library and the programs are built to tell it what they read, write and order. Exits with 0 if there is no data race and every answer is right, with 77 if what it needs is missing:
#
#   a rustc with the source of its standard library: `rustup component add rust-src`, or on Debian
#   `apt-get install rustc-web rust-web-src`; RUSTC names one that is not found by itself
#   ThreadSanitizer's runtime, which every rustc from rustup has, that one or the default one
#
# Building takes some minutes the first time. Nightly's flags are used whatever the compiler is.
#
#   SECONDS_OF_STRESS=20     how long threads race
set -eu

cd "$(dirname "$0")/.."
target=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
seconds=${SECONDS_OF_STRESS:-20}
abi=$target/tmp/abi
work=$target/tsan
note() { echo "test-tsan: $*"; }
missing() { echo "test-tsan: no $*" >&2; exit 77; }

# The standard library must be instrumented too: it has the locks and the fences, which else go unseen.
compiler=
for candidate in "${RUSTC:-rustc}" "$(rustup which --toolchain nightly rustc 2>/dev/null || true)" /usr/bin/rustc; do
    root=$("$candidate" --print sysroot 2>/dev/null) || continue
    if [ -z "$compiler" ] && [ -f "$root/lib/rustlib/src/rust/library/Cargo.lock" ]; then compiler=$candidate; fi
done
[ -n "$compiler" ] || missing "rustc with the source of its standard library"
triple=$("$compiler" -vV | sed -n 's/^host: //p')

# A rustc's own, since its code calls what the runtimes of an older clang or gcc do not have.
runtime=
for candidate in "$compiler" rustc; do
    root=$("$candidate" --print sysroot 2>/dev/null) || continue
    for file in "$root/lib/rustlib/$triple"/lib/librustc-*_rt.tsan.a; do
        if [ -z "$runtime" ] && [ -f "$file" ]; then runtime=$file; fi
    done
done
[ -n "$runtime" ] || missing "runtime of ThreadSanitizer for $triple"

# The models are what the tests of the C interface leave.
[ -d "$abi/models/model" ] || cargo test --release -p graftwork-ffi --test abi stress

note "building with $("$compiler" --version)"
# In a folder of its own: nothing else may be linked with what is built here.
RUSTC_BOOTSTRAP=1 RUSTC=$compiler RUSTFLAGS=-Zsanitizer=thread \
    cargo rustc --release -p graftwork-ffi --lib --crate-type staticlib \
    -Zbuild-std=std,panic_unwind --target "$triple" --target-dir "$work"
for program in stress executor; do
    ${CC:-cc} -std=c11 -O1 -g -Wall -Wextra -Werror -pedantic -D_GNU_SOURCE -fsanitize=thread -I include \
        -I ffi/tests/c -c "ffi/tests/c/$program.c" -o "$work/$program.o"
    # Without -fsanitize, which would bring the C compiler's runtime. All of it: what it intercepts nobody else asks for.
    ${CC:-cc} "$work/$program.o" -o "$work/$program" -rdynamic "$work/$triple/release/libgraftwork_ffi.a" \
        -Wl,--whole-archive "$runtime" -Wl,--no-whole-archive -lm -lpthread -ldl -lrt
done

# Every race is told, and one is enough for another status.
export TSAN_OPTIONS="halt_on_error=0 exitcode=66 history_size=7"
note "lent threads"
"$work/executor" "$abi/models"
note "$seconds s of stress"
"$work/stress" "$abi/models" "$seconds" tell
