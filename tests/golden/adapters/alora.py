"""Writes alora/ beside this script: an adapter on base/ that starts at its invocation tokens, and the logits that peft gives. Run with
torch 2.15, transformers 5.24 and peft 0.21.2."""

import json
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

here = Path(__file__).parent
INVOCATION = [7, 301, 7]
torch.manual_seed(4)


def base():
    return AutoModelForCausalLM.from_pretrained(here / "base", dtype=torch.float32, attn_implementation="eager")


config = LoraConfig(
    task_type="CAUSAL_LM",
    r=4,
    lora_alpha=10,
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"],
    alora_invocation_tokens=INVOCATION,
)
model = get_peft_model(base(), config)
for name, parameter in model.named_parameters():
    if "lora_" in name:
        torch.nn.init.normal_(parameter, std=0.08)
model.save_pretrained(here / "alora", save_embedding_layers=False)
(here / "alora" / "README.md").unlink()
config_file = here / "alora" / "adapter_config.json"
config_file.write_text(json.dumps(json.loads(config_file.read_text()) | {"base_model_name_or_path": None}, indent=2))

# At the start, in the middle, twice with an overlap, at the very end, not at all, and cut off.
tokens = torch.randint(8, 300, (6, 24), dtype=torch.int64)
tokens[0, 0:3] = torch.tensor(INVOCATION)
tokens[1, 11:14] = torch.tensor(INVOCATION)
tokens[2, 3:6] = torch.tensor(INVOCATION)
tokens[2, 13:18] = torch.tensor([7, 301, 7, 301, 7])
tokens[3, 21:24] = torch.tensor(INVOCATION)
tokens[5, 22:24] = torch.tensor(INVOCATION[:2])
model = PeftModel.from_pretrained(base(), here / "alora").eval()
with torch.no_grad():
    logits = model(input_ids=tokens).logits
save_file({"tokens": tokens.int(), "logits": logits.float().contiguous()}, here / "alora" / "expected.safetensors")

# Greedy answers with keys and values kept, as people generate.
answers = []
for row in tokens[:4]:
    with torch.no_grad():
        out = model.generate(input_ids=row[None], attention_mask=torch.ones(1, 24, dtype=torch.int64), max_new_tokens=8,
                             do_sample=False, eos_token_id=None, pad_token_id=0)
    answers.append(out[0, 24:])
save_file({"tokens": torch.stack(answers).int()}, here / "alora" / "answers.safetensors")
