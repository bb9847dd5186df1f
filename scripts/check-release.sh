#!/bin/sh
# Says whether what must agree before a release does: versions, the lock file, notes, third-party notices. With --final also the
# CHANGELOG, the tag, and that nothing is uncommitted. Needs Python.
set -eu

cd "$(dirname "$0")/.."
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
bad=
wrong() {
    printf '%s\n' "check-release: $*" >&2
    bad=yes
}

# Crates of this repository are asked for in the version that they have.
if grep -E '^graftwork[a-z-]* = .*path' Cargo.toml | grep -vF "version = \"$version\"" >&2; then
    wrong "Cargo.toml: expected version $version of these"
fi
cargo metadata --locked --format-version 1 >/dev/null || wrong "Cargo.lock is not current: cargo update --workspace"
head -n 1 "docs/release-notes/$version.md" 2>/dev/null | grep -qF "$version" || wrong "docs/release-notes/$version.md: none, or of another version"
python3 scripts/third-party.py --check || bad=yes

if [ "${1:-}" = --final ]; then
    grep -qF "## $version, 20" CHANGELOG.md || wrong "CHANGELOG.md: expected a heading \"## $version, DATE\""
    if grep -q '^## Unreleased' CHANGELOG.md; then wrong "CHANGELOG.md: some changes are unreleased"; fi
    [ -z "$(git status --porcelain)" ] || wrong "there are uncommitted changes"
    git describe --exact-match --match "v$version" >/dev/null 2>&1 || wrong "this commit has no tag v$version"
fi
[ -z "$bad" ] || exit 1
echo "check-release: $version"
