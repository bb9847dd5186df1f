"""Adapters that peft does not make, and stacks of those that it does, with the logits that PyTorch gives.

Each form is written from its formulas, as hooks on transformers' Llama; the weights are random, and what they change is of the order of the logits. Run in this
directory, with torch, transformers, peft and safetensors installed:

    python make.py

Written with torch 2.15, transformers 5.24 and peft 0.21.2.
"""

import json
import pathlib

import numpy as np
import torch
from peft import OFTConfig, PeftConfig, PeftMixedModel, PeftModel, PeftModelForCausalLM
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import AutoModelForCausalLM
from transformers.activations import ACT2FN

HERE = pathlib.Path(__file__).parent
WIDTH, INNER, LAYERS = 128, 352, 3
TOKENS = load_file(HERE / "base/expected.safetensors")["tokens"]
PEFT = "base_model.model.model.layers."


def base():
    return AutoModelForCausalLM.from_pretrained(HERE / "base", dtype=torch.float32).eval()


def normal(*shape, scale=0.1):
    return torch.randn(*shape) * scale


@torch.no_grad()
def save(name, config, tensors, model, weights="adapter_model.safetensors"):
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    if tensors:
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / weights)
    expect(folder / "expected.safetensors", model)


@torch.no_grad()
def expect(path, model):
    logits = model(TOKENS.long()).logits.float().contiguous()
    save_file({"tokens": TOKENS, "logits": logits}, path)
    plain = load_file(HERE / "base/expected.safetensors")["logits"]
    print(f"{path.relative_to(HERE)}: {(logits - plain).abs().max():.3f} from the base")


def llm_adapters(name, places, non_linearity, scaling, parallel=False, learned=None):
    """`places` of (layer, module): before gate_proj and up_proj, behind down_proj, or in parallel with any."""
    model, size, tensors = base(), 12, {}
    activation = ACT2FN[non_linearity]
    for layer, path in places:
        module = model.model.layers[layer].get_submodule(path)
        into, out = module.in_features, module.out_features
        series = not parallel and path.endswith("down_proj")
        before = not parallel and not series
        down = normal(size, out if series else into)
        up = normal(into if before else out, size)
        s = torch.tensor([learned]) if learned else scaling
        key = f"{PEFT}{layer}.{path}"
        tensors[f"{key}.adapter_down.weight"] = down
        tensors[f"{key}.adapter_up.weight"] = up
        if learned:
            tensors[f"{key}.adapter_scaling"] = s

        def z(x, down=down, up=up, s=s):
            return F.linear(activation(F.linear(x, down)), up) * s

        if before:
            module.register_forward_pre_hook(lambda _, args, z=z: (args[0] + z(args[0]),))
        elif series:
            module.register_forward_hook(lambda _, args, y, z=z: y + z(y))
        else:
            module.register_forward_hook(lambda _, args, y, z=z: y + z(args[0]))
    config = {
        "peft_type": "BOTTLENECK",
        "base_model_name_or_path": "base",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "bottleneck_size": size,
        "non_linearity": non_linearity,
        "adapter_dropout": 0.05,
        "target_modules": sorted({path.split(".")[-1] for _, path in places}),
        "use_parallel_adapter": parallel,
        "use_adapterp": False,
        "scaling": "learned" if learned else scaling,
        "bias": "none",
        "init_weights": "bert",
        "modules_to_save": None,
    }
    save(name, config, tensors, model)


def around(config, name="task"):
    return {
        "config": config,
        "hidden_size": WIDTH,
        "model_class": "LlamaAdapterModel",
        "model_name": "base",
        "model_type": "llama",
        "name": name,
        "version": "adapters.1.2.0",
    }


def adapterhub(name, positions, **options):
    """Bottlenecks behind attention (`attention_adapters`) or the feed-forward part (`output_adapters`)."""
    config = {
        "adapter_residual_before_ln": False,
        "cross_adapter": False,
        "dropout": 0.0,
        "factorized_phm_W": True,
        "factorized_phm_rule": False,
        "hypercomplex_nonlinearity": "glorot-uniform",
        "init_weights": "bert",
        "inv_adapter": None,
        "inv_adapter_reduction_factor": None,
        "is_parallel": False,
        "learn_phm": True,
        "leave_out": [],
        "ln_after": False,
        "ln_before": False,
        "mh_adapter": "attention_adapters" in positions,
        "non_linearity": "relu",
        "original_ln_after": True,
        "original_ln_before": False,
        "output_adapter": "output_adapters" in positions,
        "phm_bias": True,
        "phm_c_init": "normal",
        "phm_dim": 4,
        "phm_init_range": 0.0001,
        "phm_layer": False,
        "phm_rank": 1,
        "reduction_factor": 16,
        "residual_before_ln": True,
        "scaling": 1.0,
        "shared_W_phm": False,
        "shared_phm_rule": True,
        "stochastic_depth": 0.0,
        "use_gating": False,
        **options,
    }
    model, tensors, size = base(), {}, WIDTH // config["reduction_factor"]
    activation = ACT2FN[config["non_linearity"]]
    for l, layer in enumerate(model.model.layers):
        for position in positions:
            down, d = normal(size, WIDTH), normal(size, scale=0.3)
            up, e = normal(WIDTH, size), normal(WIDTH)
            key = f"model.layers.{l}.{position}.adapters.task."
            tensors |= {
                key + "adapter_down.0.weight": down,
                key + "adapter_down.0.bias": d,
                key + "adapter_up.weight": up,
                key + "adapter_up.bias": e,
            }
            s = config["scaling"]
            if s in ("learned", "channel"):
                s = 0.5 + torch.rand(1 if s == "learned" else WIDTH)
                tensors[key + "scaling"] = s

            def z(u, down=down, d=d, up=up, e=e, s=s):
                return s * F.linear(activation(F.linear(u, down, d)), up, e)

            # r goes into the norm, h comes out of the last linear layer of the part; the model adds them.
            stream = {}
            norm = layer.input_layernorm if position == "attention_adapters" else layer.post_attention_layernorm
            last = layer.self_attn.o_proj if position == "attention_adapters" else layer.mlp.down_proj
            norm.register_forward_pre_hook(lambda _, args, stream=stream: stream.update(r=args[0]))

            def hook(_, args, h, z=z, stream=stream):
                if config["is_parallel"]:
                    return h + z(stream["r"])
                return h + z(h + stream["r"] if config["original_ln_before"] else h)

            last.register_forward_hook(hook)
    save(name, around(config), tensors, model, "adapter.safetensors")


def adapterhub_lora(name, modules, alpha, rank, scales):
    model, tensors = base(), {}
    for l, layer in enumerate(model.model.layers):
        for path in modules:
            module = layer.get_submodule(path)
            key = f"model.layers.{l}.{path}.loras.task."
            if scales:
                b = 0.5 + torch.rand(module.out_features, 1)
                tensors[key + "lora_B"] = b
                module.register_forward_hook(lambda _, args, y, b=b: y * (alpha * b.T))
            else:
                a, b = normal(rank, module.in_features, scale=0.05), normal(module.out_features, rank)
                tensors |= {key + "lora_A": a, key + "lora_B": b}
                module.register_forward_hook(
                    lambda _, args, y, a=a, b=b: y + alpha / rank * F.linear(F.linear(args[0], a), b)
                )
    config = {
        "alpha": alpha,
        "architecture": "lora",
        "attn_matrices": ["q", "v"],
        "composition_mode": "scale" if scales else "add",
        "dropout": 0.0,
        "init_weights": "ia3" if scales else "lora",
        "intermediate_lora": True,
        "leave_out": [],
        "output_lora": False,
        "r": rank,
        "selfattn_lora": True,
        "use_gating": False,
    }
    save(name, around(config), tensors, model, "adapter.safetensors")


def control_vector():
    """The directions of blocks 1 and 2, of which `layers` would keep some."""
    model, tensors = base(), {}
    for layer in (1, 2):
        v = normal(WIDTH, scale=1.0)
        tensors[f"direction.{layer}"] = v
        model.model.layers[layer].register_forward_hook(lambda _, args, h, v=v: h + v)
    save("control_vector", {"peft_type": "CONTROL_VECTOR", "layers": [1, 2]}, tensors, model)


def ablation():
    """Some columns of orthonormal components behind blocks 0 and 2; the same components as CAFT keeps them, in .npy files."""
    model, tensors = base(), {}
    chosen = {0: [0, 2], 2: [1, 2, 4]}
    for layer, columns in chosen.items():
        q = torch.linalg.qr(torch.randn(WIDTH, 5))[0]
        tensors[f"components.{layer}"] = q
        q = q[:, columns]
        model.model.layers[layer].register_forward_hook(lambda _, args, h, q=q: h - (h @ q) @ q.T)
    config = {"peft_type": "ABLATION", "dict": {str(layer): columns for layer, columns in chosen.items()}}
    save("ablation", config, tensors, model)
    folder = HERE / "ablation_npy"
    folder.mkdir(exist_ok=True)
    config["path"] = "components"
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    for (layer, _), order in zip(chosen.items(), (np.ascontiguousarray, np.asfortranarray)):
        np.save(folder / f"components_layer_{layer}.npy", order(tensors[f"components.{layer}"].numpy()))


def oft():
    """The options of OFT that peft's other file leaves out: one block for all, within a ball, the exact transform."""
    options = dict(oft_block_size=16, block_share=True, coft=True, eps=0.9, use_cayley_neumann=False)
    config = OFTConfig(task_type="CAUSAL_LM", target_modules=["k_proj", "o_proj", "down_proj"], **options)
    model = PeftModelForCausalLM(base(), config)
    for name, parameter in model.named_parameters():
        if "oft_R" in name:
            parameter.data.normal_(std=0.2)
    folder = HERE / "oft_exact"
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    saved = json.loads((folder / "adapter_config.json").read_text())
    saved |= {"base_model_name_or_path": "base", "target_modules": sorted(saved["target_modules"])}
    (folder / "adapter_config.json").write_text(json.dumps(saved, indent=2) + "\n")
    expect(folder / "expected.safetensors", PeftModel.from_pretrained(base(), folder).eval())


def stacks():
    """Adapters at once, as far as peft can: several of one kind, or of kinds that can be mixed. Each wraps those before: OFT is last,
    since it would not rotate the inputs of those behind it."""
    (HERE / "stacks").mkdir(exist_ok=True)
    for names in STACKS:
        config = PeftConfig.from_pretrained(HERE / names[0])
        kind = PeftModel if len({name.split("_")[0] for name in names}) == 1 else PeftMixedModel
        model = kind(base(), config, adapter_name=names[0])
        for name in names:
            loaded = model.load_adapter(HERE / name, adapter_name=name)
            assert not loaded.unexpected_keys, (name, loaded.unexpected_keys)
        (model.base_model if kind is PeftModel else model).set_adapter(list(names))
        expect(HERE / "stacks" / f"{'+'.join(names)}.safetensors", model.eval())


STACKS = [
    ("lora", "lora_all"),
    ("lora_all", "lora_rslora"),
    ("lora", "loha"),
    ("loha", "lokr"),
    ("lokr", "lora"),
    ("lora", "oft"),
    ("adalora", "lora"),
    ("loha", "oft"),
    ("shira", "lora"),
    ("lora_all", "lokr", "loha"),
]


def main():
    torch.manual_seed(4)
    every = range(LAYERS)
    llm_adapters("bottleneck", [(l, f"mlp.{m}_proj") for l in every for m in ("gate", "up", "down")], "tanh", 1.0)
    llm_adapters("bottleneck_adapterp", [(l, "mlp.down_proj") for l in every], "gelu", 0.7, learned=1.3)
    parallel = [(0, "self_attn.q_proj"), (1, "self_attn.k_proj"), (1, "self_attn.v_proj"), (2, "mlp.down_proj")]
    llm_adapters("bottleneck_parallel", parallel, "silu", 0.7, parallel=True)
    adapterhub("hub_seq_bn", ["output_adapters"], original_ln_before=True)
    adapterhub("hub_double_seq_bn", ["attention_adapters", "output_adapters"], non_linearity="swish", scaling="channel")
    parallel = {"is_parallel": True, "init_weights": "mam_adapter"}
    adapterhub("hub_par_bn", ["output_adapters"], scaling=4.0, **parallel)
    adapterhub("hub_scaled_par_bn", ["attention_adapters", "output_adapters"], scaling="learned", non_linearity="gelu_new", **parallel)
    adapterhub_lora("hub_lora", ["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"], 16, 4, False)
    adapterhub_lora("hub_ia3", ["self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj"], 1, 1, True)
    control_vector()
    ablation()
    oft()
    stacks()


if __name__ == "__main__":
    main()
