"""What `graftwork verify` compares with: the logits and hidden states that transformers and peft compute in f32, as safetensors.

    reference.py MODEL OUT.safetensors (--text TEXT | --tokens 1,2,3 ...) [--adapter PEFT_DIRECTORY] [--last N] [--half]

MODEL is a Hugging Face directory or a GGUF file, which transformers dequantizes. With an adapter, `base.*` is the model without it.
"""
import argparse
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

parser = argparse.ArgumentParser(usage=__doc__)
parser.add_argument("model", type=Path)
parser.add_argument("out")
parser.add_argument("--text")
parser.add_argument("--tokens", nargs="+")
parser.add_argument("--adapter")
parser.add_argument("--last", type=int, default=0, help="logits of the last N positions alone")
parser.add_argument("--half", action="store_true", help="in F16")
a = parser.parse_args()

where = (a.model.parent, {"gguf_file": a.model.name}) if a.model.is_file() else (a.model, {})
model = AutoModelForCausalLM.from_pretrained(where[0], dtype=torch.float32, **where[1]).eval()
if a.tokens:
    tokens = torch.tensor([[int(token) for token in row.split(",")] for row in a.tokens])
else:
    tokens = AutoTokenizer.from_pretrained(where[0], **where[1])(a.text, return_tensors="pt").input_ids
tensors = {"tokens": tokens.int()}


@torch.no_grad()
def record(model, prefix):
    out = model(input_ids=tokens, output_hidden_states=True)
    # Virtual tokens come first and are left out.
    states = torch.stack(out.hidden_states)[:, :, -tokens.shape[1] :]
    logits = out.logits[:, -(a.last or tokens.shape[1]) :]
    for name, tensor in [("hidden_states", states), ("logits", logits)]:
        tensors[prefix + name] = tensor.to(torch.float16 if a.half else torch.float32).contiguous()


record(model, "base." if a.adapter else "")
if a.adapter:
    record(PeftModel.from_pretrained(model, a.adapter).eval(), "")
save_file(tensors, a.out)
