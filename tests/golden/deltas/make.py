"""Writes what BitDelta and DeltaZip save, beside this script: `python3 make.py`, with nothing but Python 3.

Shapes are those of ../adapters/base, values come from the formulas below; expected.json holds the deltas that they stand for, as sums over
`D[o][i] * sin(o + 2 i)` and single values, computed here in doubles. Layouts are those of FasterDecoding/BitDelta@ecbee1e and
eth-easl/deltazip@20db6d1; the archive is what torch.save writes, made by pickling stand-ins for torch's types."""

import io
import json
import math
import pickle
import struct
import sys
import types
import zipfile
from pathlib import Path

here = Path(__file__).parent


def noise(seed, n):
    """Numbers from 0 to 2^31, from a linear congruence."""
    state, out = seed * 2654435761 % 2**32 | 1, []
    for _ in range(n):
        state = (state * 1664525 + 1013904223) % 2**32
        out.append(state >> 1)
    return out


def half(x):
    return struct.unpack("<e", struct.pack("<e", x))[0]


def words(values):
    return struct.pack(f"<{len(values)}I", *values)


def probe(rows):
    """What a delta must give: its weighted sum, and three of its values."""
    total = sum(x * math.sin(o + 2 * i) for o, row in enumerate(rows) for i, x in enumerate(row))
    return {"shape": [len(rows), len(rows[0])], "sum": total, "values": [rows[0][0], rows[1][2], rows[-1][-1]]}


# torch.save -------------------------------------------------------------------------------------------------------------------

class Storage:
    def __init__(self, kind, key, data, count):
        self.kind, self.key, self.data, self.count = kind, key, data, count


class Tensor:
    def __init__(self, storage, shape):
        self.storage, self.shape = storage, shape

    def __reduce__(self):
        strides, step = [], 1
        for dim in reversed(self.shape):
            strides.insert(0, step)
            step *= dim
        hooks = __import__("collections").OrderedDict()
        return sys.modules["torch._utils"]._rebuild_tensor_v2, (self.storage, 0, tuple(self.shape), tuple(strides), False, hooks)


def stand_ins():
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def _rebuild_tensor_v2(*args):
        raise NotImplementedError

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    for name in ["FloatStorage", "IntStorage", "HalfStorage"]:
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    torch._utils = utils
    sys.modules.update({"torch": torch, "torch._utils": utils})
    return torch


def torch_save(tensors, path):
    """`tensors`: name to (kind, shape, bytes)."""
    torch, state = stand_ins(), {}
    sizes = {"FloatStorage": 4, "IntStorage": 4, "HalfStorage": 2}
    for key, (name, (kind, shape, data)) in enumerate(tensors.items()):
        state[name] = Tensor(Storage(getattr(torch, kind), str(key), data, len(data) // sizes[kind]), shape)

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if isinstance(value, Storage):
                return ("storage", value.kind, value.key, "cpu", value.count)

    out = io.BytesIO()
    Pickler(out, protocol=2).dump(state)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        def entry(name, data):
            archive.writestr(zipfile.ZipInfo(f"diff/{name}", (1980, 1, 1, 0, 0, 0)), data)
        entry("data.pkl", out.getvalue())
        entry("byteorder", b"little")
        for tensor in state.values():
            entry(f"data/{tensor.storage.key}", tensor.storage.data)
        entry("version", b"3\n")


# BitDelta ---------------------------------------------------------------------------------------------------------------------

def bitdelta():
    tensors, expected = {}, {}
    layers = {"model.layers.0.self_attn.k_proj": (32, 128), "model.layers.2.mlp.down_proj": (128, 352)}
    for seed, (name, (outputs, inputs)) in enumerate(layers.items(), 1):
        signs = noise(seed, outputs * inputs)
        rows = [[1 if signs[o * inputs + i] & 64 else -1 for i in range(inputs)] for o in range(outputs)]
        coeff = struct.unpack("<f", struct.pack("<f", 0.001 * seed + 0.0003))[0]
        mask = [
            sum((rows[o][32 * w + k] > 0) << k for k in range(32)) for w in range(inputs // 32) for o in range(outputs)
        ]
        tensors[name + ".mask"] = ("IntStorage", [inputs // 32, outputs], words(mask))
        tensors[name + ".coeff"] = ("FloatStorage", [], struct.pack("<f", coeff))
        expected[name] = probe([[coeff * x for x in row] for row in rows])
    norm = [half(x / 2**30) for x in noise(9, 128)]
    tensors["model.norm.weight"] = ("HalfStorage", [128], struct.pack("<128e", *norm))
    torch_save(tensors, here / "diff.pt")
    return expected


# DeltaZip ---------------------------------------------------------------------------------------------------------------------

def pack(codes, bits):
    """Words of 2, 4 and 8 bits hold whole codes, the lowest bits first; of 3 bits 32 codes lie in three words."""
    out, i = [], 0
    while i < len(codes):
        if bits != 3:
            out.append(sum(code << bits * j for j, code in enumerate(codes[i : i + 32 // bits])))
            i += 32 // bits
            continue
        c = codes[i : i + 32]
        out.append(sum(c[j] << 3 * j for j in range(10)) | (c[10] & 3) << 30)
        out.append(c[10] >> 2 | sum(c[11 + j] << 3 * j + 1 for j in range(10)) | (c[21] & 1) << 31)
        out.append(c[21] >> 1 | sum(c[22 + j] << 3 * j + 2 for j in range(10)))
        i += 32
    return out


def deltazip(bits):
    tensors, expected = {}, {}
    layers = {"model.layers.0.self_attn.q_proj": (128, 128), "model.layers.1.mlp.down_proj": (128, 352)}
    most = 2**bits - 1
    for seed, (name, (outputs, inputs)) in enumerate(layers.items(), 10 * bits):
        codes = [[x >> 7 & most for x in noise(seed + 100 * o, inputs)] for o in range(outputs)]
        # Symmetric codes have z = 2^(bits - 1); some others, as with sym=False.
        zeros = [1 + o % (most + 1) if seed % 2 else 2 ** (bits - 1) for o in range(outputs)]
        scales = [half(0.001 + x / 2**42) for x in noise(seed + 7, outputs)]
        columns = [pack(row, bits) for row in codes]
        tensors[name + ".qweight"] = ("I32", [inputs * bits // 32, outputs], words([c[w] for w in range(len(columns[0])) for c in columns]))
        tensors[name + ".qzeros"] = ("I32", [1, outputs * bits // 32], words(pack([z - 1 for z in zeros], bits)))
        tensors[name + ".scales"] = ("F16", [1, outputs], struct.pack(f"<{outputs}e", *scales))
        tensors[name + ".g_idx"] = ("I32", [inputs], words([0] * inputs))
        expected[name] = probe([[d * (q - z) for q in row] for row, d, z in zip(codes, scales, zeros)])
    dense = [[half(x / 2**40) for x in noise(70 + o, 128)] for o in range(32)]
    name = "model.layers.1.self_attn.v_proj"
    tensors[name + ".weight"] = ("F16", [32, 128], struct.pack("<4096e", *[x for row in dense for x in row]))
    expected[name] = probe(dense)
    norm = [half(x / 2**30) for x in noise(5, 128)]
    tensors["model.norm.weight"] = ("F16", [128], struct.pack("<128e", *norm))
    header, at = {}, 0
    for key, (dtype, shape, data) in tensors.items():
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    folder = here / f"deltazip_{bits}bit"
    folder.mkdir(exist_ok=True)
    data = b"".join(data for _, _, data in tensors.values())
    (folder / "deltazip-compressed.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    config = {"bits": bits, "group_size": -1, "sparsity": 0.5, "damp_percent": 0.01, "desc_act": False, "sym": True}
    config |= {"true_sequential": True, "lossless": "none", "prunen": 2, "prunem": 4, "block_size": 128}
    config = {"base_model": "a/base", "compress_config": config, "target_modules": [name.split(".")[-1] for name in layers]}
    (folder / "delta_config.json").write_text(json.dumps(config, indent=1) + "\n")
    return expected


expected = {"diff.pt": bitdelta()} | {f"deltazip_{bits}bit": deltazip(bits) for bits in [2, 3, 4]}
(here / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
