"""What the tests share: models, adapters and answers of tests/golden."""

import json
import struct
from array import array
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
GOLDEN = REPOSITORY / "tests" / "golden" / "adapters"
BASE = GOLDEN / "base"
# How far logits may be from those that peft computes in f32.
TOLERANCE = 2e-3


def tensors(path):
    """The tensors of a safetensors file in F32 and I32: shape and flat values, by name."""
    data = Path(path).read_bytes()
    (size,) = struct.unpack_from("<Q", data)
    found = {}
    for name, entry in json.loads(data[8 : 8 + size]).items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            values = array({"F32": "f", "I32": "i"}[entry["dtype"]])
            values.frombytes(data[8 + size + start : 8 + size + end])
            found[name] = entry["shape"], values
    return found


def expected(path):
    """Sequences of tokens, and the logits of each: [positions][vocab]."""
    found = tensors(path)
    (sequences, positions), tokens = found["tokens"]
    (_, rows, vocab), logits = found["logits"]
    for s in range(sequences):
        at = [logits[(s * rows + p) * vocab :][:vocab] for p in range(rows)]
        yield list(tokens[s * positions : (s + 1) * positions]), at


def rows(logits):
    """The rows of logits, with numpy or without."""
    return logits.tolist()


def directory(path):
    """A directory as a dict of files."""
    return {file.name: file.read_bytes() for file in Path(path).iterdir() if file.name != "expected.safetensors"}


def text_model():
    """The base with a tokenizer of its size and a chat template, in memory."""
    tokenizer = json.loads((GOLDEN.parent / "text" / "gpt-2.tokenizer.json").read_text(encoding="utf-8"))
    model = tokenizer["model"]
    model["vocab"] = {token: id for token, id in model["vocab"].items() if id < 512}
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    model["merges"] = [[a, b] for a, b in pairs if a + b in model["vocab"]]
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["id"] < 512]
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}{{ extra }}"
    )
    return {
        **directory(BASE),
        "tokenizer.json": json.dumps(tokenizer).encode(),
        "tokenizer_config.json": json.dumps({"chat_template": template}).encode(),
    }
