"""What peft's `add_weighted_adapter` makes of three LoRAs by every method, and of two IA3s.

The base is a random Llama that nothing but the shapes is taken from, so it is not kept. Run in this directory, with torch,
transformers, peft and safetensors installed:

    python make.py

Written with torch 2.15, transformers 5.24 and peft 0.21.2.
"""

import json
import pathlib

import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from peft.tuners.ia3 import IA3Layer
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

HERE = pathlib.Path(__file__).parent
WEIGHTS = [0.7, -0.4, 1.1]
DENSITY, SEED = 0.3, 7

# Where modules are shared, ranks are equal, as the methods that combine A and B apart need; `third` is of another rank where it is alone.
LORAS = {
    "first": dict(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj", "embed_tokens"]),
    "second": dict(r=4, lora_alpha=10, use_rslora=True, target_modules=["q_proj", "up_proj", "lm_head", "embed_tokens"]),
    "third": dict(
        r=2,
        lora_alpha=3,
        rank_pattern={"q_proj|v_proj|lm_head": 4},
        alpha_pattern={"layers.1.self_attn.q_proj": 9},
        target_modules=["q_proj", "v_proj", "down_proj", "lm_head"],
    ),
}
# Ranks of its own everywhere.
UNEQUAL = dict(r=5, lora_alpha=7, rank_pattern={"v_proj": 3}, target_modules=["q_proj", "v_proj", "o_proj", "embed_tokens"])
IA3S = {
    "ia3_first": dict(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "ia3_second": dict(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
}

# File, method, options.
LORA = [
    ("linear", "linear", {}),
    ("cat", "cat", {}),
    ("svd", "svd", {}),
    ("svd_3", "svd", dict(svd_rank=3)),
    ("ties", "ties", dict(density=DENSITY)),
    ("ties_frequency", "ties", dict(density=DENSITY, majority_sign_method="frequency")),
    ("ties_svd", "ties_svd", dict(density=DENSITY)),
    ("dare_linear", "dare_linear", dict(density=DENSITY)),
    ("dare_ties", "dare_ties", dict(density=DENSITY)),
    ("dare_ties_frequency", "dare_ties", dict(density=DENSITY, majority_sign_method="frequency")),
    ("dare_linear_svd", "dare_linear_svd", dict(density=DENSITY)),
    ("dare_ties_svd", "dare_ties_svd", dict(density=DENSITY, svd_rank=6)),
    ("magnitude_prune", "magnitude_prune", dict(density=DENSITY)),
    ("magnitude_prune_svd", "magnitude_prune_svd", dict(density=DENSITY)),
]


def base():
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, vocab_size=40)
    heads = dict(num_attention_heads=4, num_key_value_heads=2)
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=False)).eval()


def save(name, config):
    model = get_peft_model(base(), config)
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            parameter.data.normal_(std=0.3)
        elif "ia3_" in key:
            parameter.data.uniform_(0.5, 1.5)
    model.save_pretrained(HERE / name, save_embedding_layers=False)
    (HERE / name / "README.md").unlink()
    path = HERE / name / "adapter_config.json"
    saved = json.loads(path.read_text()) | {"base_model_name_or_path": "base", "task_type": "CAUSAL_LM"}
    for lists in ("target_modules", "feedforward_modules"):
        if lists in saved:
            saved[lists] = sorted(saved[lists])
    path.write_text(json.dumps(saved, indent=2) + "\n")


def load(names):
    model = PeftModel.from_pretrained(base(), HERE / names[0], adapter_name=names[0])
    for name in names[1:]:
        loaded = model.load_adapter(HERE / name, adapter_name=name)
        assert not loaded.unexpected_keys, loaded.unexpected_keys
    return model


@torch.no_grad()
def lora(file, names, method, options):
    model, tensors = load(names), {}
    torch.manual_seed(SEED)
    model.base_model.add_weighted_adapter(names, WEIGHTS[: len(names)], "all", combination_type=method, **options)
    for path, layer in model.base_model.model.named_modules():
        if isinstance(layer, LoraLayer) and "all" in layer.scaling:
            assert layer.scaling["all"] == 1, path
            if "all" in layer.lora_A:
                a, b = layer.lora_A["all"].weight, layer.lora_B["all"].weight
            else:
                a, b = layer.lora_embedding_A["all"], layer.lora_embedding_B["all"]
            tensors[path + ".A"], tensors[path + ".B"] = a.data.contiguous(), b.data.contiguous()
    save_file(tensors, HERE / f"{file}.safetensors")


@torch.no_grad()
def ia3(file, names):
    model, tensors = load(names), {}
    model.base_model.add_weighted_adapter(names, WEIGHTS[: len(names)], "all")
    for path, layer in model.base_model.model.named_modules():
        if isinstance(layer, IA3Layer) and "all" in layer.ia3_l:
            tensors[path] = layer.ia3_l["all"].data.contiguous()
    save_file(tensors, HERE / f"{file}.safetensors")


def main():
    torch.manual_seed(5)
    for name, options in LORAS.items():
        save(name, LoraConfig(task_type="CAUSAL_LM", **options))
    save("unequal", LoraConfig(task_type="CAUSAL_LM", **UNEQUAL))
    for name, options in IA3S.items():
        save(name, IA3Config(task_type="CAUSAL_LM", **options))
    for file, method, options in LORA:
        lora(file, list(LORAS), method, options)
    for file, method, options in LORA:
        if method == "cat" or method.endswith("svd"):
            lora(f"unequal_{file}", ["first", "unequal"], method, options)
    lora("one", ["third"], "svd", {})
    ia3("ia3", list(IA3S))


if __name__ == "__main__":
    main()
