"""Logits of a GGUF file in llama.cpp beside those that Graftwork wrote: compare-llama.py MODEL.gguf LOGITS.safetensors TOKENS MOST

TOKENS are ids between commas, as for `graftwork logits --tokens`. Fails where the mean KL divergence per position is above MOST.
Needs llama-cpp-python.
"""

import json
import struct
import sys

import llama_cpp
import numpy as np


@llama_cpp.llama_log_callback
def silent(level, message, user):
    pass


def log_probabilities(logits):
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


model, logits, tokens, most = sys.argv[1:]
tokens, most = [int(token) for token in tokens.split(",")], float(most)
llama_cpp.llama_log_set(silent, None)
llama = llama_cpp.Llama(model, n_ctx=max(len(tokens), 64), logits_all=True, verbose=False)
llama.eval(tokens)
theirs = log_probabilities(np.array(llama.scores[: len(tokens)]))
with open(logits, "rb") as file:
    (size,) = struct.unpack("<Q", file.read(8))
    shape = json.loads(file.read(size))["logits"]["shape"]
    ours = log_probabilities(np.frombuffer(file.read(), "<f4").reshape(shape)[0])
kl = (np.exp(ours) * (ours - theirs)).sum(axis=1).mean()
same = (ours.argmax(axis=1) == theirs.argmax(axis=1)).mean()
print(f"KL {kl:.6f} per position, the same likeliest token at {same:.0%} of {len(tokens)}")
sys.exit(not kl <= most)
