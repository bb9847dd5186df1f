"""What an adapter of each kind costs in decode: writes one with random values for SmolLM2-135M, measures it, prints a Markdown table.

    cargo build --release
    python benches/adapter_costs.py DIRECTORY [--graftwork target/release/graftwork] [--repeat 21] [--only KIND]

`graftwork bench` runs every round with and without the adapter and gives the median of what it adds."""

import argparse
import json
import math
import os
import random
import struct
import subprocess

LAYERS, HIDDEN, KV, FFN, VOCAB = 30, 576, 192, 1536, 49152
SHAPES = {"self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (KV, HIDDEN), "self_attn.v_proj": (KV, HIDDEN),
          "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (FFN, HIDDEN), "mlp.up_proj": (FFN, HIDDEN),
          "mlp.down_proj": (HIDDEN, FFN)}
LINEARS = [(f"base_model.model.model.layers.{i}.{m}", *shape) for i in range(LAYERS) for m, shape in SHAPES.items()]
pool = [random.Random(1).gauss(0, 0.01) for _ in range(4096)]


def values(shape, mean=0.0):
    """A tensor of small values around `mean`, in F32."""
    count = math.prod(shape)
    block = struct.pack("<4096f", *(mean + x for x in pool))
    return "F32", list(shape), (block * (count // 4096 + 1))[: 4 * count]


def indices(rows, cols, count):
    """`count` places of a matrix, all different."""
    places = sorted(random.Random(2).sample(range(rows * cols), count))
    flat = [p // cols for p in places] + [p % cols for p in places]
    return "I32", [2, count], struct.pack(f"<{2 * count}i", *flat)


def low_rank(r, extra=lambda name, o, i: {}):
    return {k: v for name, o, i in LINEARS for k, v in
            {f"{name}.lora_A.weight": values([r, i]), f"{name}.lora_B.weight": values([o, r]), **extra(name, o, i)}.items()}


def each(make, modules=tuple(SHAPES)):
    return {k: v for name, o, i in LINEARS if name.split(".", 5)[5] in modules for k, v in make(name, o, i).items()}


def near_square(n):
    a = next(a for a in range(math.isqrt(n), 0, -1) if n % a == 0)
    return a, n // a


def lokr(name, o, i):
    (a, b), (c, d) = near_square(o), near_square(i)
    return {f"{name}.lokr_w1": values([a, c]), f"{name}.lokr_w2_a": values([b, 8]), f"{name}.lokr_w2_b": values([8, d])}


def shira(name, o, i, r=8):
    n = r * (o + i)
    return {f"{name}.shira_weight": values([n]), f"{name}.shira_indices": indices(o, i, n)}


def bottleneck(name, d, s=32):
    return {f"{name}.adapter_down.weight": values([s, d[0]]), f"{name}.adapter_up.weight": values([d[1], s])}


def hub(layer, position, s=36):
    name = f"model.layers.{layer}.{position}.adapters.task"
    return {f"{name}.adapter_down.0.weight": values([s, HIDDEN]), f"{name}.adapter_down.0.bias": values([s]),
            f"{name}.adapter_up.weight": values([HIDDEN, s]), f"{name}.adapter_up.bias": values([HIDDEN])}


def hub_config(**fields):
    config = {"original_ln_before": True, "original_ln_after": True, "residual_before_ln": True, "ln_before": False,
              "ln_after": False, "mh_adapter": False, "output_adapter": True, "is_parallel": False, "non_linearity": "relu",
              "reduction_factor": 16, "scaling": 1.0, "leave_out": [], **fields}
    return {"config": config, "hidden_size": HIDDEN, "model_type": "llama", "name": "task", "version": "adapters.1.2.0",
            "model_class": "LlamaAdapterModel", "model_name": "smollm2"}


def identity(width, k):
    flat = [1.0 if row == col else 0.0 for row in range(width) for col in range(k)]
    return "F32", [width, k], struct.pack(f"<{width * k}f", *flat)


PREFIX = "base_model.model.model."
KINDS = {
    "LoRA, rank 8": ({"peft_type": "LORA", "r": 8, "lora_alpha": 8}, lambda: low_rank(8)),
    "DoRA, rank 8": ({"peft_type": "LORA", "r": 8, "lora_alpha": 8, "use_dora": True},
                     lambda: low_rank(8, lambda n, o, i: {f"{n}.lora_magnitude_vector": values([o], 1.0)})),
    "AdaLoRA, rank 8": ({"peft_type": "ADALORA", "init_r": 8, "r": 8, "lora_alpha": 8}, lambda: each(lambda n, o, i: {
        f"{n}.lora_A": values([8, i]), f"{n}.lora_B": values([o, 8]), f"{n}.lora_E": values([8, 1], 1.0)})),
    "VeRA, rank 64": ({"peft_type": "VERA", "r": 64}, lambda: {
        "base_model.vera_A": values([64, FFN]), "base_model.vera_B": values([FFN, 64]), **each(lambda n, o, i: {
            f"{n}.vera_lambda_b": values([o]), f"{n}.vera_lambda_d": values([64])})}),
    "LoHa, rank 4": ({"peft_type": "LOHA", "r": 4, "alpha": 4}, lambda: each(lambda n, o, i: {
        f"{n}.hada_w1_a": values([o, 4]), f"{n}.hada_w1_b": values([4, i]),
        f"{n}.hada_w2_a": values([o, 4]), f"{n}.hada_w2_b": values([4, i])})),
    "LoKr, rank 8": ({"peft_type": "LOKR", "r": 8, "alpha": 8}, lambda: each(lokr)),
    "SHiRA, rank 8": ({"peft_type": "SHIRA", "r": 8}, lambda: each(shira)),
    "IA3": ({"peft_type": "IA3", "feedforward_modules": ["down_proj"]}, lambda: {
        **each(lambda n, o, i: {f"{n}.ia3_l": values([o, 1], 1.0)}, ("self_attn.k_proj", "self_attn.v_proj")),
        **each(lambda n, o, i: {f"{n}.ia3_l": values([1, i], 1.0)}, ("mlp.down_proj",))}),
    "OFT, blocks of 32": ({"peft_type": "OFT", "r": 0, "oft_block_size": 32, "use_cayley_neumann": True,
                           "num_cayley_neumann_terms": 5},
                          lambda: each(lambda n, o, i: {f"{n}.oft_R.weight": values([i // 32, 496])})),
    "LayerNorm tuning": ({"peft_type": "LN_TUNING"}, lambda: {
        f"{PREFIX}layers.{i}.{n}.ln_tuning_layers.weight": values([HIDDEN], 1.0)
        for i in range(LAYERS) for n in ("input_layernorm", "post_attention_layernorm")}),
    "trained tokens, 8": ({"peft_type": "LORA", "r": 8, "lora_alpha": 8, "trainable_token_indices": list(range(8))},
                          lambda: {f"{PREFIX}embed_tokens.token_adapter.trainable_tokens_delta": values([8, HIDDEN])}),
    "prompt tuning, 16 tokens": ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 16, "token_dim": HIDDEN,
                                  "num_transformer_submodules": 1, "num_layers": LAYERS},
                                 lambda: {"prompt_embeddings": values([16, HIDDEN])}),
    "prefix tuning, 16 tokens": ({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 16, "token_dim": KV,
                                  "num_transformer_submodules": 1, "num_layers": LAYERS},
                                 lambda: {"prompt_embeddings": values([16, 2 * LAYERS * KV])}),
    "bottlenecks in series, 32": ({"peft_type": "BOTTLENECK", "bottleneck_size": 32, "non_linearity": "tanh"}, lambda: {
        **each(lambda n, o, i: bottleneck(n, (i, i)), ("mlp.gate_proj", "mlp.up_proj")),
        **each(lambda n, o, i: bottleneck(n, (o, o)), ("mlp.down_proj",))}),
    "bottlenecks in parallel, 32": (
        {"peft_type": "BOTTLENECK", "bottleneck_size": 32, "non_linearity": "tanh", "use_parallel_adapter": True},
        lambda: each(lambda n, o, i: bottleneck(n, (i, o)), ("mlp.up_proj", "mlp.down_proj"))),
    "AdapterHub seq_bn, 36": (hub_config(), lambda: {k: v for l in range(LAYERS) for k, v in hub(l, "output_adapters").items()}),
    "AdapterHub double_seq_bn, 36": (hub_config(mh_adapter=True, original_ln_before=False, non_linearity="swish"), lambda: {
        k: v for l in range(LAYERS) for p in ("attention_adapters", "output_adapters") for k, v in hub(l, p).items()}),
    "AdapterHub par_bn, 36": (hub_config(is_parallel=True, scaling=4.0),
                              lambda: {k: v for l in range(LAYERS) for k, v in hub(l, "output_adapters").items()}),
    "control vector, all layers": ({"peft_type": "CONTROL_VECTOR"},
                                   lambda: {f"direction.{l}": values([HIDDEN]) for l in range(1, LAYERS)}),
    "ablation, 4 directions": ({"peft_type": "ABLATION"},
                               lambda: {f"components.{l}": identity(HIDDEN, 4) for l in range(LAYERS)}),
}


def write(directory, config, tensors):
    os.makedirs(directory, exist_ok=True)
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    name = "adapter.safetensors" if "config" in config else "adapter_model.safetensors"
    with open(os.path.join(directory, name), "wb") as f:
        f.write(struct.pack("<Q", len(head)) + head)
        for _, _, data in tensors.values():
            f.write(data)
    json.dump(config, open(os.path.join(directory, "adapter_config.json"), "w"))
    return at


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("directory")
parser.add_argument("--graftwork", default="target/release/graftwork")
parser.add_argument("--repeat", type=int, default=21)
parser.add_argument("--only")
a = parser.parse_args()
print("| kind | parameters | of the base's bytes, in F32 | decode |\n|---|---|---|---|", flush=True)
for kind, (config, make) in KINDS.items():
    if a.only and a.only not in kind:
        continue
    path = os.path.join(a.directory, "".join(c if c.isalnum() else "_" for c in kind))
    tensors = make()
    size = write(path, config, tensors)
    command = [a.graftwork, "bench", "-m", "smollm2", "-a", path, "--pp", "16", "--tg", "32", "--threads", "2", "--repeat",
               str(a.repeat), "--json"]
    r = subprocess.run(command, capture_output=True, text=True)
    if r.returncode:
        print(f"| {kind} | {r.stderr.strip()} |", flush=True)
        continue
    cost = 100 * json.loads(r.stdout)["adapters_decode_cost"]
    share = 100 * size / 98362432
    print(f"| {kind} | {sum(math.prod(s) for _, s, _ in tensors.values()) / 1000:.0f} k | {share:.2f} % | {cost:+.1f} % |", flush=True)
