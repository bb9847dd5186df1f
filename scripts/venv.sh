# Read by other scripts, which say with `say`: makes a fresh virtual environment of Python 3.10 or later (or of the one that PYTHON names) in
# the new folder $work, which goes at the end; $python and `pip` are its own. Ends with 77 where Python lacks venv or pip.
PYTHON=${PYTHON:-python3}
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || {
    say "skipped: no Python 3.10"
    exit 77
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
"$PYTHON" -m venv "$work/venv" >"$work/log" 2>&1 && "$work/venv/bin/python" -m pip --version >/dev/null 2>&1 || {
    cat "$work/log" >&2
    say "skipped: no venv or pip"
    exit 77
}
python=$work/venv/bin/python
pip() { "$python" -m pip --disable-pip-version-check "$@"; }
