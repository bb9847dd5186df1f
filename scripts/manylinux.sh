#!/bin/sh
# Makes the wheel and the archive of the C library (or runs COMMAND...) in the PyPA's image for this machine's architecture, with
# this machine's Rust: what is made there runs with glibc 2.28 and newer. Needs docker or podman, and Rust for a GNU system.
#
#   CONTAINER=docker     which of them
#   IMAGE=...            another image than quay.io/pypa/manylinux_2_28_ARCHITECTURE
set -eu

cd "$(dirname "$0")/.."
. scripts/release-flags.sh
container=${CONTAINER:-$(command -v docker || command -v podman)} || {
    echo "manylinux: neither docker nor podman" >&2
    exit 77
}
image=${IMAGE:-quay.io/pypa/manylinux_2_28_$(uname -m)}
home=${CARGO_HOME:-$HOME/.cargo}
[ $# -gt 0 ] || set -- sh -c 'sh scripts/dist.sh && sh scripts/build-wheel.sh'

# The image has no Rust; what this machine's brings needs no newer glibc than 2.17. Crates are fetched here.
${CARGO:-cargo} fetch --locked
case $container in
    *podman) user=--userns=keep-id ;;
    *) user=--user=$(id -u):$(id -g) ;;
esac
# shellcheck disable=SC2016 # PATH is the image's.
exec "$container" run --rm "$user" --volume "$PWD:/graftwork" --workdir /graftwork \
    --volume "$(${RUSTC:-rustc} --print sysroot):/rust:ro" --volume "$home/registry:/cargo/registry" \
    --env CARGO_HOME=/cargo --env CARGO_NET_OFFLINE=true --env CARGO_TARGET_DIR=target/manylinux --env HOME=/tmp \
    --env SOURCE_DATE_EPOCH --env PYTHON=/opt/python/cp310-cp310/bin/python \
    "$image" sh -c 'PATH=/rust/bin:$PATH exec "$@"' manylinux "$@"
