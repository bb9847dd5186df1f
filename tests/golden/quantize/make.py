"""What llama.cpp makes of small models: python3 make.py MODEL.gguf... > llama.json

Needs `pip install llama-cpp-python==0.3.36`.
"""

import hashlib
import json
import os
import struct
import sys
import tempfile

import llama_cpp

FILE_TYPES = {
    "F32": 0, "F16": 1, "BF16": 32, "Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "Q8_0": 7, "Q2_K": 10, "Q3_K_S": 11,
    "Q3_K_M": 12, "Q3_K_L": 13, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18,
}
FORMATS = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K",
    13: "Q5_K", 14: "Q6_K", 30: "BF16",
}
SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def matrices(data):
    """Names and formats of the matrices in a GGUF file without arrays."""
    at = 4 + 4

    def number(kind):
        nonlocal at
        (value,) = struct.unpack_from("<" + kind, data, at)
        at += struct.calcsize(kind)
        return value

    def text():
        nonlocal at
        size = number("Q")
        at += size
        return data[at - size : at].decode()

    tensors, keys = number("Q"), number("Q")
    for _ in range(keys):
        text()
        kind = number("I")
        if kind == 8:
            text()
        else:
            at += SCALARS[kind]
    for _ in range(tensors):
        name, dims = text(), number("I")
        at += 8 * dims
        kind = number("I")
        at += 8
        if dims > 1:
            yield name.removesuffix(".weight"), FORMATS[kind]


@llama_cpp.llama_log_callback
def silent(level, message, user):
    pass


llama_cpp.llama_log_set(silent, None)
llama_cpp.llama_backend_init()
result = {}
for path in sys.argv[1:]:
    model = result[os.path.basename(path).removesuffix(".gguf")] = {}
    model["source"] = hashlib.sha256(open(path, "rb").read()).hexdigest()
    for name, number in FILE_TYPES.items():
        options = llama_cpp.llama_model_quantize_default_params()
        options.ftype = number
        with tempfile.NamedTemporaryFile(suffix=".gguf") as out:
            if llama_cpp.llama_model_quantize(path.encode(), out.name.encode(), options):
                sys.exit(f"{path}: {name} failed")
            data = open(out.name, "rb").read()
        formats = list(matrices(data))
        count = lambda kind: sum(other == kind for _, other in formats)
        most = max((kind for _, kind in formats), key=lambda kind: (count(kind), kind))
        exceptions = {tensor: kind for tensor, kind in formats if kind != most}
        model[name] = {"sha256": hashlib.sha256(data).hexdigest(), "formats": {"most": most} | exceptions}
# A line for each file type.
print("{")
for i, (name, model) in enumerate(result.items()):
    lines = ",\n".join(f"  {json.dumps(kind)}: {json.dumps(what)}" for kind, what in model.items())
    print(f"{json.dumps(name)}: {{\n{lines}\n}}" + ("," if i + 1 < len(result) else ""))
print("}")
