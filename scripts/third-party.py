"""Writes THIRD-PARTY.md: whose code is in the programs and libraries that this repository makes, and under which licences.

    python3 scripts/third-party.py           writes it
    python3 scripts/third-party.py --check   says whether it is current: 0 if so, 1 if not

Licences are read from the sources that cargo fetches. Python and cargo suffice. Of several licences the first that LICENCES
has is taken; one that it lacks must be looked at by a person, and ends this with an error.
"""

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "THIRD-PARTY.md"
# What is handed out, and for which systems.
MADE = ("graftwork-ffi", "graftwork-cli")
TARGETS = ("x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu")
# Those that ask for no more than their text, as they are preferred; each with names of files that hold it.
LICENCES = {
    "MIT": ("LICENSE-MIT", "LICENSE-MIT.txt", "license-mit", "LICENSE", "LICENSE.txt", "LICENSE.md"),
    "Zlib": ("LICENSE-ZLIB", "LICENSE"),
    "BSD-2-Clause": ("LICENSE-BSD",),
    "BSD-3-Clause": ("LICENSE-BSD", "LICENSE"),
    "Apache-2.0": ("LICENSE-APACHE", "LICENSE"),
    "Unicode-3.0": ("LICENSE-UNICODE",),
}
# What is in the binaries and is no crate of the graph: name, where from, licence, copyright. Texts are those of other crates.
OTHERS = (
    ("the grids of the IQ formats", "https://github.com/ggml-org/llama.cpp", "MIT", "Copyright (c) 2023-2026 The ggml authors"),
    ("the Rust standard library", "https://github.com/rust-lang/rust", "MIT", "Copyright (c) The Rust Project Contributors"),
    ("its tables of characters", "https://www.unicode.org", "Unicode-3.0", "Copyright (c) 1991-2024 Unicode, Inc."),
    # Of those that the standard library is made with, these end up in programs for Linux.
    ("addr2line, gimli", "https://github.com/gimli-rs", "MIT", "Copyright (c) 2015-2018 The Rust Project Developers"),
    ("adler2, miniz_oxide", "https://github.com/Frommi/miniz_oxide", "MIT", "Copyright (c) 2017-2020 Frommi, oyvindln"),
    ("object", "https://github.com/gimli-rs/object", "MIT", "Copyright (c) 2015 The Gimli Developers"),
    ("rustc-demangle", "https://github.com/rust-lang/rustc-demangle", "MIT", "Copyright (c) 2014 Alex Crichton"),
    ("compiler-builtins", "https://github.com/rust-lang/compiler-builtins", "MIT", "Copyright (c) The Rust Project Contributors"),
)

HEAD = """\
# Third-party notices

Graftwork is licensed under MIT or Apache-2.0, at your choice. The command, the C library and the Python wheel also hold the code listed
here. Whoever hands them out, or a program that they are linked into, hands out these notices with them. Where there is a choice of
licences, the one named here is taken. `scripts/third-party.py` writes this file.

The adapters of the demo, in the wheel, were trained for SmolLM2-135M-Instruct (Apache-2.0) on questions of BFCL (Apache-2.0) and sentences of
VADER (MIT).
"""


def graph() -> "tuple[list[dict], list[dict]]":
    """The crates whose code is in what is made (no macros, no build scripts, no tools of tests), and all that cargo fetches."""
    found, fetched = {}, {}
    for target in TARGETS:
        command = [os.environ.get("CARGO", "cargo"), "metadata", "--format-version=1", "--locked", "--filter-platform", target]
        metadata = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
        packages = {package["id"]: package for package in metadata["packages"]}
        edges = {node["id"]: node["deps"] for node in metadata["resolve"]["nodes"]}
        left = [id for id, package in packages.items() if package["name"] in MADE]
        seen = set()
        while left:
            id = left.pop()
            if id in seen or any("proc-macro" in target["kind"] for target in packages[id]["targets"]):
                continue
            seen.add(id)
            left += [edge["pkg"] for edge in edges[id] if any(kind["kind"] is None for kind in edge["dep_kinds"])]
        found.update((id, packages[id]) for id in seen if packages[id]["source"])
        fetched.update(packages)
    return tuple(sorted(of.values(), key=lambda package: (package["name"], package["version"])) for of in (found, fetched))


def choose(package: dict) -> "list[str]":
    """The licences that are taken: one of each part of an expression that `AND` joins."""
    taken = []
    for part in (package["license"] or "").split(" AND "):
        offered = re.split(r" OR |/", part.strip().strip("()"))
        choice = next((known for known in LICENCES if known in offered), None)
        if not choice:
            sys.exit(f"third-party: {package['name']}: expected one of {', '.join(LICENCES)}; found {package['license']!r}")
        taken.append(choice)
    return taken


class Text:
    """A licence: what it says, and whose copyrights go before it. Where both cannot be told apart, all is what it says."""

    def __init__(self, licence: str, text: str) -> None:
        text = text.replace("\r", "").strip("\n")
        self.copyrights: "list[str]" = []
        if licence == "MIT":
            text = self.without_copyrights(text)
        elif licence == "Apache-2.0":
            # The terms end there; what follows says how to use them, at times with a name filled in.
            text, _, appendix = text.partition("END OF TERMS AND CONDITIONS")
            self.copyrights = re.findall(r"^ *(Copyright (?!\[).*)$", appendix, re.M)
        self.body = textwrap.dedent(text).rstrip()
        # Only the words count, not how lines are broken, spelled large or quoted.
        self.key = re.sub(r"[\W_]+", " ", self.body).strip().lower()

    def without_copyrights(self, text: str) -> str:
        copyrights, body = [], []
        for line in text.split("\n"):
            plain = line.strip()
            if re.match(r"(Copyright|\([cC]\)|©) ", plain):
                copyrights.append(plain)
            elif not re.fullmatch(r"#* *(The )?MIT License( \(MIT\))?|All rights reserved\.", plain, re.I):
                body.append(line)
        plain = "\n".join(body).strip("\n")
        first, last = "permission is hereby granted, free of charge", "dealings in the software."
        words = " ".join(plain.lower().split())
        if not words.startswith(first) or not words.endswith(last):
            return text
        self.copyrights = copyrights
        return plain


def texts(package: dict) -> "tuple[list[tuple[str, Text | None]], list[tuple[str, str]]]":
    """The texts of the chosen licences of a crate, None where it comes without, and other notices in it."""
    folder = Path(package["manifest_path"]).parent
    chosen = []
    for licence in choose(package):
        held = next((folder / name for name in LICENCES[licence] if (folder / name).is_file()), None)
        chosen.append((licence, Text(licence, held.read_text(encoding="utf-8")) if held else None))
    notices = sorted(path for path in folder.iterdir() if re.match(r"NOTICE|COPYING\.", path.name))
    return chosen, [(path.name, path.read_text(encoding="utf-8").replace("\r", "").strip("\n")) for path in notices]


def fenced(text: str) -> str:
    lines = "\n".join(line.rstrip() for line in text.split("\n"))
    return f"```text\n{lines}\n```\n"


def document() -> str:
    packages, fetched = graph()
    rows, notices = [], []
    # Licence and key of a body to the body and the copyrights over it, with whose they are.
    bodies: "dict[tuple[str, str], tuple[str, list[str]]]" = {}
    without = []
    for package in packages:
        label = f"{package['name']} {package['version']}"
        place = f"https://crates.io/crates/{package['name']}/{package['version']}"
        rows.append(f"| [{label}]({place}) | {package['license']} | {' and '.join(choose(package))} |")
        chosen, others = texts(package)
        for licence, text in chosen:
            if text is None:
                without.append((licence, label, f"Copyright (c) {', '.join(package['authors']) or 'its authors'}"))
                continue
            owners = bodies.setdefault((licence, text.key), (text.body, []))[1]
            owners.append(f"{label}: {'; '.join(text.copyrights)}" if text.copyrights else label)
        notices += [(f"{name} of {label}", text) for name, text in others]
    for name, place, licence, copyright in OTHERS:
        rows.append(f"| [{name}]({place}) | {licence} | {licence} |")
        without.append((licence, name, copyright))
    # What comes without a text of its own joins the one that most others have.
    for licence, label, copyright in without:
        if not any(key[0] == licence for key in bodies):
            held = next(Path(each["manifest_path"]).parent / LICENCES[licence][0] for each in fetched if licence in (each["license"] or ""))
            text = Text(licence, held.read_text(encoding="utf-8"))
            bodies[licence, text.key] = (text.body, [])
        common = max((key for key in bodies if key[0] == licence), key=lambda key: (len(bodies[key][1]), key))
        bodies[common][1].append(f"{label}: {copyright}")

    parts = [HEAD, "| what | its licence | taken |", "|---|---|---|", *rows, ""]
    for (licence, _), (body, owners) in sorted(bodies.items(), key=lambda item: (item[0][0], -len(item[1][1]), item[0][1])):
        parts += [f"## {licence}\n", fenced("\n".join(owners) + "\n\n" + body)]
    if notices:
        parts += ["## Other notices\n"]
        parts += ["These stand in the sources of the crates named, which the links above lead to; what is under MPL-2.0 is to be had there "
                  "in source form.\n"]
    for title, text in notices:
        parts += [f"### {title}\n", fenced(text)]
    return "\n".join(parts)


def main() -> None:
    text = document()
    if sys.argv[1:] == ["--check"]:
        if not FILE.is_file() or FILE.read_text(encoding="utf-8") != text:
            sys.exit("third-party: THIRD-PARTY.md is not current: run python3 scripts/third-party.py")
    elif sys.argv[1:]:
        sys.exit(__doc__)
    else:
        FILE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
