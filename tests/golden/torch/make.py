"""Writes the golden files of torch.save beside this script, from ../adapters. Run with torch 2.15 and safetensors 0.8."""

from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import load_file

here = Path(__file__).parent
adapters = here.parent / "adapters"

# As peft saves with safe_serialization=False.
torch.save(load_file(adapters / "lora/adapter_model.safetensors"), here / "lora.bin")

# As a state dict with versions of modules, parameters, one storage for all floats, every second matrix transposed in it; protocol 4.
shira = load_file(adapters / "shira/adapter_model.safetensors")
floats = [name for name, tensor in shira.items() if tensor.dtype == torch.float32]
shared = torch.cat([torch.full((3,), torch.nan)] + [shira[name].flatten() for name in floats])
state, at = OrderedDict(), 3
for name, tensor in shira.items():
    if name in floats:
        size = tensor.numel()
        state[name] = torch.nn.Parameter(shared[at : at + size].view(tensor.shape))
        at += size
    else:
        state[name] = tensor.T.contiguous().T
state._metadata = OrderedDict([("", {"version": 1})])
torch.save(state, here / "shira.bin", pickle_protocol=4)

# No dictionary.
torch.save(torch.arange(6, dtype=torch.float16).view(2, 3).T, here / "alone.bin")
torch.save({"x": torch.ones(2)}, here / "legacy.bin", _use_new_zipfile_serialization=False)
