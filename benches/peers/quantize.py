"""What quantized files of SmolLM2 lose: quantize.py calib|llama TYPE...

`calib`: KL divergence of the next token to the F16 file, without and with a calibration text. `llama`: the same without, by Graftwork and
by llama.cpp, and between the two. Run in the root of the project after `cargo build --release`; needs llama-cpp-python.
"""

import json
import os
import struct
import subprocess
import sys
import tempfile

import llama_cpp
import numpy as np

GRAFTWORK = os.environ.get("GRAFTWORK", "target/release/graftwork")
TEXTS = "tests/golden/deltas/"
POSITIONS = 64
MODE, TYPES = sys.argv[1], sys.argv[2:]
SEQUENCES = 20 if MODE == "calib" else 3
FOLDER = tempfile.mkdtemp()
BASE, FILE, LOGITS, TOKENS = (os.path.join(FOLDER, name) for name in ("f16.gguf", "q.gguf", "logits", "tokens"))


@llama_cpp.llama_log_callback
def silent(level, message, user):
    pass


def graftwork(*arguments):
    return subprocess.run([GRAFTWORK, *arguments], check=True, capture_output=True).stdout


def ours(model):
    graftwork("logits", "-m", model, "--tokens-file", TOKENS, "--out", LOGITS)
    data = open(LOGITS, "rb").read()
    (size,) = struct.unpack_from("<Q", data)
    return np.frombuffer(data[8 + size :], "<f4").reshape(SEQUENCES, POSITIONS, -1)


def theirs(model):
    llama = llama_cpp.Llama(model, logits_all=True, n_ctx=128, verbose=False)
    result = np.empty((SEQUENCES, POSITIONS, llama.n_vocab()), np.float32)
    for tokens, logits in zip(TOKEN_IDS, result):
        llama.reset()
        llama.eval(tokens.tolist())
        logits[:] = llama.scores[:POSITIONS]
    return result


def log_probabilities(logits):
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def kl(expected, found):
    total = 0.0
    for p, q in zip(expected, found):
        p, q = log_probabilities(p), log_probabilities(q)
        total += (np.exp(p) * (p - q)).sum()
    return total / (SEQUENCES * POSITIONS)


llama_cpp.llama_log_set(silent, None)
graftwork("quantize", "smollm2", BASE, "--to", "F16")
vocabulary = llama_cpp.Llama(BASE, vocab_only=True, verbose=False)
chats = [json.loads(line)["text"].encode() for line in open(TEXTS + "held_out.jsonl")]
chats = [vocabulary.tokenize(chat, add_bos=False, special=True) for chat in chats]
TOKEN_IDS = np.array([chat[-POSITIONS:] for chat in chats if len(chat) >= POSITIONS][:SEQUENCES], "<i4")
header = {"tokens": {"dtype": "I32", "shape": list(TOKEN_IDS.shape), "data_offsets": [0, TOKEN_IDS.nbytes]}}
header = json.dumps(header).encode()
header += b" " * (-len(header) % 8)
with open(TOKENS, "wb") as file:
    file.write(struct.pack("<Q", len(header)) + header + TOKEN_IDS.tobytes())

reference = ours(BASE)
if MODE == "llama":
    print(f"F16: Graftwork to llama.cpp {kl(reference, theirs(BASE)):.6f}")
for kind in TYPES:
    if MODE == "calib":
        for texts in [], ["--calib", TEXTS + "calibration.jsonl"]:
            report = json.loads(graftwork("quantize", BASE, FILE, "--to", kind, "--json", *texts))
            print(f"{kind} {report['bits_per_weight']:.3f} bits/weight, KL {kl(reference, ours(FILE)):.5f}", *texts[:1])
    else:
        graftwork("quantize", BASE, FILE, "--to", kind)
        a, b = ours(FILE), theirs(FILE)
        logits = np.sqrt(np.mean((a - b) ** 2) / np.mean(a**2))
        print(f"{kind}: to F16 {kl(reference, a):.5f}, llama.cpp {kl(reference, b):.5f}; between {kl(a, b):.5f}, logits {logits:.4f}")
