"""Writes graftwork/_abi.py from include/graftwork.h: constants, structs, callbacks and functions, for ctypes.

    python3 python/generate.py            writes the file
    python3 python/generate.py --check    says whether it is up to date (exit status 1: no)
"""

import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
HEADER = HERE.parent / "include" / "graftwork.h"
OUTPUT = HERE / "graftwork" / "_abi.py"

SCALARS = {
    "char": "c_char",
    "float": "c_float",
    "int32_t": "c_int32",
    "gw_status": "c_int32",
    "size_t": "c_size_t",
    "uint8_t": "c_uint8",
    "uint32_t": "c_uint32",
    "uint64_t": "c_uint64",
}

# Structs that the library fills: their texts are pointers with sizes, which c_char_p would read up to a NUL.
FILLED = {"gw_event", "gw_adapter_info", "gw_engine_info"}

HEAD = '''"""What include/graftwork.h declares, for ctypes. Written by python/generate.py: do not edit."""

from __future__ import annotations

from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    c_char_p,
    c_float,
    c_int32,
    c_size_t,
    c_uint8,
    c_uint32,
    c_uint64,
    c_void_p,
)
from typing import Any
'''


def constants(text: str) -> "list[tuple[str, str]]":
    """Names and values of macros and enums, in order."""
    found = []
    for match in re.finditer(r"#define (GW_\w+) (.+)|\b(GW_\w+) = (-?\d+)", text):
        name, value = match[1] or match[3], (match[2] or match[4]).strip()
        value = re.sub(r"UINT32_C\((\w+)\)", r"\1", value)
        value = {"UINT32_MAX": "0xFFFFFFFF", "((size_t)-1)": "c_size_t(-1).value"}.get(value, value)
        if re.fullmatch(r"-?\d+|0x[0-9A-F]+|c_size_t\(-1\)\.value", value):
            found.append((name, value))
    return found


class Types:
    """The header's types, as they become known."""

    def __init__(self) -> None:
        self.structs: "set[str]" = set()
        self.callbacks: "set[str]" = set()
        self.handles: "set[str]" = set()

    def ctype(self, declaration: str, text: str = "c_char_p") -> str:
        """The ctypes type of a type as C writes it; `text` is what a pointer to characters becomes."""
        stars = declaration.count("*")
        name = declaration.replace("*", " ").replace("const ", " ").strip()
        if name in self.handles or name == "void":
            if not stars:
                return "None"
            return "POINTER(" * (stars - 1) + "c_void_p" + ")" * (stars - 1)
        if name == "char" and stars:
            return "POINTER(" * (stars - 1) + text + ")" * (stars - 1)
        if name not in self.structs | self.callbacks | SCALARS.keys():
            raise ValueError(f"unknown type: {declaration}")
        base = SCALARS.get(name, name)
        return "POINTER(" * stars + base + ")" * stars

    def parameters(self, text: str) -> "list[str]":
        """The types of a list of parameters."""
        if text.strip() == "void":
            return []
        return [self.ctype(split(parameter)[0]) for parameter in text.split(",")]


def split(declaration: str) -> "tuple[str, str]":
    """Type and name of a declaration."""
    match = re.fullmatch(r"\s*(.*?)(\w+)\s*", declaration.replace("GW_OPTIONAL", ""), re.S)
    assert match, declaration
    return re.sub(r"\s+", " ", match[1]).strip(), match[2]


def structure(types: Types, name: str, body: str) -> "list[str]":
    """The class of a struct."""
    hints, fields = [], []
    for declaration in filter(str.strip, body.split(";")):
        array = re.search(r"\[(\d+)\]", declaration)
        kind, field = split(re.sub(r"\[\d+\]", "", declaration))
        ctype = types.ctype(kind, "c_void_p" if name in FILLED else "c_char_p")
        if array:
            ctype += f" * {array[1]}"
        hint = "float" if ctype == "c_float" else "int" if re.fullmatch(r"c_u?int\d+|c_size_t", ctype) else "Any"
        hints.append(f"    {field}: {hint}")
        fields.append(f'        ("{field}", {ctype}),')
    return [f"class {name}(Structure):", *hints, "    _fields_ = [", *fields, "    ]"]


def module(header: str) -> str:
    """The text of the module."""
    text = re.sub(r"/\*.*?\*/", " ", header, flags=re.S)
    values = constants(text)
    lines = [HEAD, *(f"{name} = {value}" for name, value in values)]
    text = re.sub(r"^#.*(\\\n.*)*", "", text, flags=re.M)
    types = Types()
    for name in re.findall(r"typedef struct (\w+) \1;", text):
        types.handles.add(name)
    functions = []
    pattern = (
        r"typedef struct (?P<struct>\w+) \{(?P<body>.*?)\} (?P=struct);"
        r"|typedef (?P<returned>[\w ]+?)\(\*(?P<callback>\w+)\)\((?P<taken>[^)]*)\);"
        r"|GW_API (?P<must>GW_MUST_USE )?(?P<result>[^;(]*?)(?P<function>gw_\w+)\((?P<parameters>[^)]*)\);"
    )
    for match in re.finditer(pattern, text, re.S):
        if match["struct"]:
            lines += ["", "", *structure(types, match["struct"], match["body"])]
            types.structs.add(match["struct"])
        elif match["callback"]:
            arguments = [types.ctype(match["returned"]), *types.parameters(match["taken"])]
            arguments = ["c_void_p" if a == "c_char_p" else a for a in arguments]
            lines += ["", "", f"{match['callback']} = CFUNCTYPE({', '.join(arguments)})"]
            types.callbacks.add(match["callback"])
        else:
            parameters = ", ".join(types.parameters(match["parameters"]))
            result = types.ctype(match["result"], "c_void_p")
            functions.append(f'    "{match["function"]}": ({result}, [{parameters}]),')
    lines += ["", "", "# Results and parameters.", "FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {", *functions, "}"]
    exported = [f'    "{name}",' for name, _ in values]
    lines += ["", "__all__ = [", *exported, "]"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    written = module(HEADER.read_text(encoding="utf-8"))
    if "--check" in sys.argv[1:]:
        sys.exit(0 if OUTPUT.read_text(encoding="utf-8") == written else f"{OUTPUT} is not what {HEADER} gives")
    OUTPUT.write_text(written, encoding="utf-8")
