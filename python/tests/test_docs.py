"""Runs the examples of docs/python.md, which are one program, and compares what they print.

    python tests/test_docs.py --write       writes what they print into the manual
"""

import contextlib
import io
import re
import sys
import unittest

import golden
from graftwork.pull import PullError, pull

MANUAL = golden.REPOSITORY / "docs" / "python.md"
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.M | re.S)


def run(text):
    """The manual as it should be."""
    space, printed = {"__name__": "manual"}, None

    def replace(match):
        nonlocal printed
        kind, body = match.groups()
        if kind == "text":
            if printed is None:
                return match[0]
            body, printed = printed, None
            return f"```text\n{body}```"
        line = text[: match.start(2)].count("\n")
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile("\n" * line + body, str(MANUAL), "exec"), space)
        printed = out.getvalue()
        return match[0]

    return BLOCK.sub(replace, text)


class Manual(unittest.TestCase):
    def test_examples(self):
        try:
            pull("smollm2")
        except PullError as error:
            self.skipTest(str(error))
        self.maxDiff = None
        text = MANUAL.read_text(encoding="utf-8")
        self.assertEqual(run(text), text)
        self.assertGreater(text.count("```python"), 8)
        self.assertEqual(text.count("```python"), text.count("```text"))

    def test_readme(self):
        text = (golden.REPOSITORY / "python" / "README.md").read_text(encoding="utf-8")
        ((_, code),) = BLOCK.findall(text)
        with contextlib.redirect_stdout(io.StringIO()) as out:
            try:
                exec(code.replace("model.gguf", str(pull("smollm2"))), {})
            except PullError as error:
                self.skipTest(str(error))
        self.assertTrue(out.getvalue().startswith("The sky is blue because"))


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        MANUAL.write_text(run(MANUAL.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        unittest.main()
