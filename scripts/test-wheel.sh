#!/bin/sh
# Builds the wheel (unless WHEEL names one), installs it into a fresh virtual environment without a look at this checkout or cargo,
# and runs the demo from there. Needs what scripts/build-wheel.sh needs; ends with 77 where it does.
set -eu

cd "$(dirname "$0")/.."
say() { printf '%s\n' "test-wheel: $*"; }
fail() {
    say "$*" >&2
    exit 1
}
PYTHON=${PYTHON:-python3}

if [ -z "${WHEEL:-}" ]; then
    say "building"
    WHEEL=$(sh scripts/build-wheel.sh)
fi
WHEEL=$(realpath "$WHEEL")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
cd "$work"
"$PYTHON" -m venv venv
python=$work/venv/bin/python
unset GRAFTWORK_LIBRARY PYTHONPATH PYTHONHOME

say "installing $(basename "$WHEEL")"
# Only the environment's programs are found: no compiler and no cargo.
PATH=$work/venv/bin "$python" -m pip --disable-pip-version-check install --quiet --no-index "$WHEEL"
"$python" -m pip --disable-pip-version-check show --files graftwork >"$work/files"
for file in libgraftwork.so py.typed adapters/tools-lora/adapter_model.safetensors licenses/LICENSE-MIT licenses/LICENSE-APACHE \
    licenses/THIRD-PARTY.md; do
    grep -q "$file" "$work/files" || {
        cat "$work/files" >&2
        fail "not installed: $file"
    }
done

say "demo"
PATH=$work/venv/bin "$python" -m graftwork.demo >"$work/demo" || {
    cat "$work/demo" >&2
    fail "the demo failed"
}
for words in '"Oslo", "unit": "celsius"}}' '| negative' '| positive' 'each by its adapter'; do
    grep -qF -- "$words" "$work/demo" || {
        cat "$work/demo" >&2
        fail "the demo does not say: $words"
    }
done
say "done: $WHEEL, $(wc -c <"$WHEEL") bytes"
