#!/bin/sh
# Tests the C interface with what `cargo test -p graftwork-ffi` does not need: valgrind, cbindgen, a build that panics on
# demand, a minute of stress, and llama.cpp in the same process. Leaves out what is not installed and says so.
#
#   SECONDS_OF_STRESS=60     how long threads race
#   MODEL=FILE.gguf          SmolLM2, for llama.cpp and the time that cancelling takes; `graftwork pull smollm2` prints it
#   LLAMA=DIR                where lib/libllama.so and include/llama.h are, such as site-packages of llama-cpp-python
#   GRAFTWORK_TEST_LLAMA=1   builds llama-cpp-python into a virtual environment if LLAMA is not set (minutes)
set -eu

cd "$(dirname "$0")/.."
target=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
seconds=${SECONDS_OF_STRESS:-60}
abi=$target/tmp/abi
warnings="-std=c11 -O1 -g -Wall -Wextra -Werror -pedantic -D_GNU_SOURCE"
has() { command -v "$1" >/dev/null; }
note() { echo "test-abi: $*"; }

note "the table, the life, cycles, engines, reloads"
cargo test --release -p graftwork-ffi --test abi

note "panics on demand"
# In a folder of its own: this library must not lie where another is looked for.
cargo test --release -p graftwork-ffi --test abi --features inject-panics --target-dir "$target/panics" -- panics

note "$seconds s of stress"
"$abi/stress" "$abi/models" "$seconds" tell

# What a C compiler makes of the declarations that Rust exports, after those of the header.
if ! has cbindgen && [ ! -x "$target/tools/bin/cbindgen" ]; then
    cargo install cbindgen --version 0.29.0 --locked --root "$target/tools" --target-dir "$target/tools/build" || true
fi
if PATH=$target/tools/bin:$PATH has cbindgen; then
    note "the header against the exported functions"
    PATH=$target/tools/bin:$PATH cbindgen --quiet --config ffi/cbindgen.toml --crate graftwork-ffi -o "$abi/exported.h" ffi
    printf '#include "graftwork.h"\n#include "exported.h"\nextern int nothing;\n' >"$abi/exported.c"
    ${CC:-cc} $warnings -I include -I "$abi" -c "$abi/exported.c" -o "$abi/exported.o"
    # Only functions are followed by a parenthesis, and only declarations have GW_API.
    sed -n '/^GW_API/s/.*\(gw_[a-z_]*\)(.*/\1/p' include/graftwork.h | sort >"$abi/header.names"
    sed 's|//.*||' "$abi/exported.h" | grep -o 'gw_[a-z_]*(' | tr -d '(' | sort >"$abi/exported.names"
    diff "$abi/header.names" "$abi/exported.names"
else
    note "LEFT OUT: no cbindgen, the header was not compared with the exported functions"
fi

if has valgrind; then
    note "valgrind"
    # The longest first; two at a time, because each uses one processor.
    printf '%s\n' arguments life states engines executor sizes sources fields options |
        xargs -P 2 -I PROGRAM valgrind -q --error-exitcode=9 --leak-check=full \
            --errors-for-leak-kinds=definite,indirect,possible --read-inline-info=no --num-callers=40 \
            --suppressions=ffi/tests/c/valgrind.supp "$abi/PROGRAM" "$abi/models"
else
    note "LEFT OUT: no valgrind"
fi

model=${MODEL:-}
if [ ! -f "$model" ]; then
    note "LEFT OUT: no MODEL, for how long cancelling takes and for llama.cpp"
    exit
fi
program() { # NAME ARGUMENT...
    name=$1
    shift
    ${CC:-cc} $warnings -I include -I ffi/tests/c "$@" "ffi/tests/c/$name.c" -o "$abi/$name" -rdynamic \
        -L "$abi/lib" "-Wl,-rpath,$abi/lib" -lgraftwork -lm -lpthread ${llama:+-L "$llama/lib" "-Wl,-rpath,$llama/lib" -lllama}
}
llama=
program latency
"$abi/latency" "$model"

llama=${LLAMA:-}
if [ -z "$llama" ] && [ "${GRAFTWORK_TEST_LLAMA:-}" = 1 ]; then
    [ -d "$target/llama" ] || python3 -m venv "$target/llama"
    # Not for this CPU alone: on some, what it has for their matrix units fails by itself. Nor one that was built so before.
    CMAKE_ARGS=-DGGML_NATIVE=OFF "$target/llama/bin/pip" install --quiet --no-cache-dir llama-cpp-python
    llama=$(echo "$target"/llama/lib/python3*/site-packages)
fi
if [ -f "$llama/lib/libllama.so" ]; then
    note "llama.cpp beside"
    # Its header is no model of tidiness, so its warnings do not count.
    program llama -isystem "$llama/include"
    "$abi/llama" "$model"
else
    note "LEFT OUT: no LLAMA/lib/libllama.so"
fi

# Beside the libraries of a virtual environment is its Python.
python=$(dirname "$(dirname "$(dirname "${llama:-/none/none/none}")")")/bin/python3
if [ -x "$python" ]; then
    note "quantized files in llama.cpp"
    tokens=1,9690,198,2683,359,253,5356,5646,11173,3365,3511,308,34519,28,7018,411,407,19712,8182,2,198,1,4093,198
    for format in Q8_0 Q4_K_M Q2_K; do
        cargo run --release --quiet -- quantize "$model" "$abi/quantized.gguf" --to "$format" >/dev/null
        cargo run --release --quiet -- logits -m "$abi/quantized.gguf" --tokens "$tokens" --out "$abi/logits"
        "$python" scripts/compare-llama.py "$abi/quantized.gguf" "$abi/logits" "$tokens" 0.05
    done
else
    note "LEFT OUT: no Python with llama.cpp, quantized files were not opened by it"
fi
