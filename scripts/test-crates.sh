#!/bin/sh
# Packages the crates as `cargo publish` does, each built from its package, and looks at what is in them. Arguments go to cargo:
# --allow-dirty for changes that are not committed, --no-verify to build nothing.
set -eu

cd "$(dirname "$0")/.."
fail() {
    printf '%s\n' "test-crates: $*" >&2
    exit 1
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

cargo package --workspace "$@" 2>"$work/log" || {
    cat "$work/log" >&2
    fail "cargo package failed"
}
# That tests stay behind is what `include` says.
if grep '^warning' "$work/log" | grep -v '^warning: ignoring test' >&2; then fail "cargo package warns"; fi

target=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
for name in graftwork-kernels graftwork-adapters graftwork graftwork-ffi graftwork-cli; do
    crate=$target/package/$name-$version.crate
    mkdir "$work/$name"
    tar -xzf "$crate" -C "$work/$name"
    root=$work/$name/$name-$version
    for file in Cargo.toml README.md LICENSE-MIT LICENSE-APACHE src/lib.rs; do
        # Not links: there is nothing outside.
        [ -f "$root/$file" ] && [ ! -L "$root/$file" ] || fail "$name: missing: $file"
    done
    find "$root" -size +256k >"$work/large"
    [ ! -s "$work/large" ] || { cat "$work/large" >&2; fail "$name: large files"; }
    echo "test-crates: $name-$version: $(find "$root" -type f | wc -l) files, $(wc -c <"$crate") bytes"
done
for header in graftwork.h graftwork.hpp; do
    cmp "include/$header" "$work/graftwork-ffi/graftwork-ffi-$version/include/$header" || fail "graftwork-ffi has another $header"
done
