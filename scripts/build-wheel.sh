#!/bin/sh
# Builds dist/graftwork-VERSION-py3-none-PLATFORM.whl, where PLATFORM is the oldest manylinux that the library runs on: it follows from the
# glibc that it is linked with, so scripts/manylinux.sh runs this beside an old one. Needs what `make` needs, and Python 3.10 (or the one
# that PYTHON names) with venv and pip; ends with 77 where those are lacking.
set -eu

cd "$(dirname "$0")/.."
. scripts/release-flags.sh
say() { printf '%s\n' "build-wheel: $*" >&2; }
. scripts/venv.sh
pip install --quiet auditwheel wheel

# The library of the C package, which exports nothing but the header's functions. The system's libgcc_s is where any Python is, and asks for
# no newer glibc than its own, as the static one may.
# Linked here, not where other builds link it in other ways.
${MAKE:-make} -s OUT="$work/library" LIBGCC= >&2
GRAFTWORK_LIBRARY=$work/library/libgraftwork.so
export GRAFTWORK_LIBRARY
# What another build left there would be packed too.
rm -rf python/build
pip wheel --quiet --no-deps --wheel-dir "$work" ./python
rm -rf python/build
wheel=$(ls "$work"/graftwork-*.whl)

"$python" -m auditwheel show "$wheel" | tee "$work/audit" >&2
platform=$(tr '\n' ' ' <"$work/audit" | sed -n 's/.*consistent with the following platform tag: *"\([^"]*\)".*/\1/p')
case $platform in
    manylinux*) ;;
    *)
        say "expected a manylinux platform, found ${platform:-none}"
        exit 1
        ;;
esac
tagged=$("$python" -m wheel tags --platform-tag "$platform" "$wheel")
mkdir -p dist
cp "$work/$tagged" dist/
echo "dist/$tagged"
