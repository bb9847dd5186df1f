"""Writes resized/ beside this script: a LoRA on base/ with five tokens more, and the logits that peft gives. Run with torch 2.15,
transformers 5.24 and peft 0.21.2."""

import json
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

here = Path(__file__).parent
VOCAB = 517
torch.manual_seed(4)


def base():
    model = AutoModelForCausalLM.from_pretrained(here / "base", dtype=torch.float32, attn_implementation="eager")
    model.resize_token_embeddings(VOCAB, mean_resizing=False)
    return model


config = LoraConfig(
    task_type="CAUSAL_LM", r=4, lora_alpha=10, target_modules=["q_proj", "v_proj"], modules_to_save=["embed_tokens", "lm_head"]
)
model = get_peft_model(base(), config)
for name, parameter in model.named_parameters():
    if "lora_" in name:
        torch.nn.init.normal_(parameter, std=0.08)
    if "modules_to_save" in name:
        torch.nn.init.normal_(parameter.data[512:], std=parameter.data[:512].std().item())
        parameter.data += 0.1 * parameter.data.std() * torch.randn_like(parameter)
model.save_pretrained(here / "resized")
(here / "resized" / "README.md").unlink()
# To keep it small.
file = here / "resized" / "adapter_model.safetensors"
save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file, {"format": "pt"})
config_file = here / "resized" / "adapter_config.json"
config_file.write_text(json.dumps(json.loads(config_file.read_text()) | {"base_model_name_or_path": None}, indent=2))

tokens = torch.randint(0, VOCAB, (2, 24), dtype=torch.int64)
tokens[0, 5:10] = torch.arange(512, VOCAB)
tokens[1, 23] = 516
model = PeftModel.from_pretrained(base(), here / "resized").eval()
with torch.no_grad():
    logits = model(input_ids=tokens).logits
save_file({"tokens": tokens.int(), "logits": logits.float().contiguous()}, here / "resized" / "expected.safetensors")
