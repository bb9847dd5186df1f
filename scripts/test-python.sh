#!/bin/sh
# Installs the Python package into a fresh virtual environment, and from there runs its tests, with numpy and without, the
# demo, the examples of docs/python.md, the types (where mypy can be had), and tells what Python costs per token. Ends with
# 77 where Python lacks venv or pip.
#
#   GRAFTWORK_PYTHON_LIMIT=100   fails if Python adds more microseconds per token
set -eu

cd "$(dirname "$0")/.."
repository=$PWD
say() { printf '%s\n' "test-python: $*"; }
. scripts/venv.sh
unset GRAFTWORK_LIBRARY PYTHONPATH

say "installing"
pip install --quiet ./python
pip show --files graftwork >"$work/files"
for file in libgraftwork py.typed adapters/tools-lora/adapter_model.safetensors; do
    grep -q "$file" "$work/files" || {
        cat "$work/files" >&2
        say "not installed: $file" >&2
        exit 1
    }
done
# From elsewhere, so that what is imported is what was installed.
cd "$work"

say "tests"
"$python" -X dev -m unittest discover -s "$repository/python/tests"
say "demo"
"$python" -m graftwork.demo | tee "$work/demo"
for words in '"Oslo", "unit": "celsius"}}' '| negative' '| positive' 'each by its adapter'; do
    grep -qF -- "$words" "$work/demo" || {
        say "the demo does not say: $words" >&2
        exit 1
    }
done
say "overhead"
"$python" "$repository/python/benches/overhead.py" ${GRAFTWORK_PYTHON_LIMIT:+--limit "$GRAFTWORK_PYTHON_LIMIT"} || [ $? = 77 ]

if pip install --quiet numpy mypy >"$work/log" 2>&1; then
    say "tests, with numpy"
    "$python" -m unittest discover -s "$repository/python/tests"
    say "types"
    (cd "$repository/python" && "$work/venv/bin/mypy" --cache-dir "$work/mypy" && "$work/venv/bin/mypy" --cache-dir "$work/mypy" \
        --strict tests/typed.py)
else
    say "numpy and mypy: skipped, they cannot be had"
fi
say "uninstalling"
pip uninstall --quiet --yes graftwork
[ ! -e "$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/graftwork" ] || {
    say "files were left behind" >&2
    exit 1
}
say "done"
