"""The generated declarations are those of the header."""

import ctypes
import ctypes.util
import importlib.util
import re
import subprocess
import sys
import unittest

import golden
import graftwork
from graftwork import _abi, _library


class Abi(unittest.TestCase):
    def test_generated(self):
        script = golden.REPOSITORY / "python" / "generate.py"
        spec = importlib.util.spec_from_file_location("generate", script)
        generate = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(generate)
        made = generate.module(generate.HEADER.read_text(encoding="utf-8"))
        self.assertEqual(made, generate.OUTPUT.read_text(encoding="utf-8"), "run python/generate.py")
        self.assertEqual(golden.Path(_abi.__file__).read_text(encoding="utf-8"), made, "another one is installed")

    def test_functions(self):
        header = (golden.REPOSITORY / "include" / "graftwork.h").read_text(encoding="utf-8")
        declared = set(re.findall(r"^GW_API[^;]*?\b(gw_\w+)\(", header, re.M))
        self.assertEqual(declared, _abi.FUNCTIONS.keys())
        self.assertEqual(len(declared), 44)

    @unittest.skipIf(ctypes.sizeof(ctypes.c_void_p) != 8, "the layout is that of 64-bit systems")
    def test_layout(self):
        seen = set()
        for line in (golden.REPOSITORY / "ffi" / "layout.txt").read_text(encoding="utf-8").splitlines():
            if line.startswith("#"):
                continue
            struct, field, offset, size = line.split()
            kind = getattr(_abi, struct)
            if field == ".":
                self.assertEqual(ctypes.sizeof(kind), int(size), struct)
            else:
                found = getattr(kind, field)
                self.assertEqual((found.offset, found.size), (int(offset), int(size)), line)
            seen.add((struct, field))
        for name in dir(_abi):
            kind = getattr(_abi, name)
            if isinstance(kind, type) and issubclass(kind, ctypes.Structure) and kind is not ctypes.Structure:
                for field in kind._fields_:
                    self.assertIn((name, field[0]), seen)

    def test_constants(self):
        header = (golden.REPOSITORY / "include" / "graftwork.h").read_text(encoding="utf-8")
        for name, value in re.findall(r"\b(GW_\w+) = (\d+)", header):
            self.assertEqual(getattr(graftwork, name), int(value))

    def test_version(self):
        self.assertEqual(graftwork.abi_version(), graftwork.GW_ABI_VERSION)
        self.assertRegex(graftwork.version(), r"^\d+\.\d+\.\d+")
        self.assertTrue(graftwork.has_feature("lora"))
        self.assertFalse(graftwork.has_feature("LoRA"))
        self.assertFalse(graftwork.has_feature("a\0b"))
        for status, kind in graftwork.errors._CLASSES.items():
            error = _library.error(status, "")
            self.assertIs(type(error), kind)
            self.assertEqual(getattr(graftwork, error.kind), status)
        self.assertEqual(_library.error(99, "").kind, "GW_ERR_UNKNOWN")

    def test_a_library_that_is_none(self):
        code = "import graftwork"
        for path, word in (("/no/such/file", "pip"), (ctypes.util.find_library("c") or "libc.so.6", "gw_")):
            env = {"GRAFTWORK_LIBRARY": path, "PYTHONPATH": str(golden.Path(graftwork.__file__).parents[1])}
            done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
            self.assertIn("ImportError", done.stderr)
            self.assertIn(word, done.stderr)


if __name__ == "__main__":
    unittest.main()
