"""Fine-tunes SmolLM2-135M-Instruct to answer with one JSON function call: `python3 finetune.py BASE.gguf BFCL_DATA OUT`.

BASE.gguf is the file that `graftwork pull smollm2` fetches, BFCL_DATA the folder `bfcl_eval/data` of the PyPI package bfcl-eval. Trains all
linears of the blocks and nothing else; OUT becomes a Hugging Face directory in f32, saved again every few steps, so that a run that is
stopped leaves a model. calibration.jsonl and held_out.jsonl are written to the current directory. See README.md beside this script."""

import json
import random
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

SEED, STEPS, BATCH, RATE, WARM_UP = 4, 80, 2, 4e-5, 4
MINUTES, SAVE_EVERY = 15, 20
LONGEST, HELD_OUT, CALIBRATION_TOKENS = 256, 40, 24_000
FILES = ["simple_python", "multiple", "live_simple", "live_multiple"]
SYSTEM = 'You call functions. Answer with one JSON object {"name": ..., "arguments": {...}} and nothing else.\nFunctions:\n'
ASSISTANT = "<|im_start|>assistant\n"


def schema(value):
    """BFCL names types as Python does."""
    if isinstance(value, dict):
        types = {"dict": "object", "float": "number", "tuple": "array"}
        return {k: types.get(v, v) if k == "type" and isinstance(v, str) else schema(v) for k, v in value.items()}
    return value


def call(truth):
    """The shortest accepted call: of each argument the first accepted value, without those that may be left out (""). None if values nest."""
    [(name, accepted)] = truth.items()
    arguments = {key: values[0] for key, values in accepted.items() if values and "" not in values}
    if "{" in json.dumps(list(arguments.values())):
        return None
    return json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)


def chats(folder, tokenizer):
    """Rendered chats of one user message and one call, each question once."""
    found = {}
    for name in FILES:
        questions = (folder / f"BFCL_v4_{name}.json").read_text().splitlines()
        truths = (folder / "possible_answer" / f"BFCL_v4_{name}.json").read_text().splitlines()
        truths = {truth["id"]: truth["ground_truth"] for truth in map(json.loads, truths)}
        for item in map(json.loads, questions):
            messages, truth = item["question"][0], truths[item["id"]]
            if len(item["question"]) != 1 or [m["role"] for m in messages] != ["user"] or len(truth) != 1 or not (answer := call(truth[0])):
                continue
            functions = "\n".join(json.dumps(schema(f), ensure_ascii=False, separators=(",", ":")) for f in item["function"])
            system = {"role": "system", "content": SYSTEM + functions}
            chat = [system, *messages, {"role": "assistant", "content": answer}]
            text = tokenizer.apply_chat_template(chat, tokenize=False)
            if len(tokenizer(text).input_ids) <= LONGEST:
                found.setdefault(messages[0]["content"], text)
    return list(found.values())


def loss_sum(model, tokenizer, text):
    """Cross entropy over the answer and its end mark: sum, count."""
    prompt, answer = text.rsplit(ASSISTANT, 1)
    prompt = tokenizer(prompt + ASSISTANT).input_ids
    answer = tokenizer(answer.removesuffix("\n")).input_ids
    hidden = model.model(torch.tensor([prompt + answer[:-1]])).last_hidden_state[0, len(prompt) - 1 :]
    return torch.nn.functional.cross_entropy(model.lm_head(hidden), torch.tensor(answer), reduction="sum"), len(answer)


@torch.no_grad()
def mean_loss(model, tokenizer, texts):
    losses, counts = zip(*(loss_sum(model, tokenizer, text) for text in texts))
    return float(sum(losses)) / sum(counts)


def write(path, texts):
    Path(path).write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))


def main(base, data, out):
    random.seed(SEED)
    torch.manual_seed(SEED)
    torch.set_num_threads(2)
    base = Path(base)
    tokenizer = AutoTokenizer.from_pretrained(base.parent, gguf_file=base.name)
    model = AutoModelForCausalLM.from_pretrained(base.parent, gguf_file=base.name, dtype=torch.float32)
    # What follows is a plain f32 model: its configuration must not speak of GGUF.
    del model.config.quantization_config
    model.hf_quantizer = None
    for name, weight in model.named_parameters():
        weight.requires_grad = name.endswith("_proj.weight")
    weights = [weight for weight in model.parameters() if weight.requires_grad]

    texts = chats(Path(data), tokenizer)
    random.shuffle(texts)
    held_out, training = texts[: len(texts) // 10][:HELD_OUT], texts[len(texts) // 10 :]
    tokens, calibration = 0, []
    for text in training:
        if tokens < CALIBRATION_TOKENS:
            tokens += len(tokenizer(text).input_ids)
            calibration.append(text)
    write("calibration.jsonl", calibration)
    write("held_out.jsonl", held_out)
    print(f"{len(texts)} chats: {len(training)} to train, {len(calibration)} to calibrate ({tokens} tokens), {len(held_out)} held out", flush=True)

    def save(step):
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
        print(f"step {step}: saved", flush=True)

    save(0)
    print(f"held-out loss before: {mean_loss(model, tokenizer, held_out):.4f}", flush=True)
    optimizer = torch.optim.AdamW(weights, lr=RATE, betas=(0.9, 0.99), weight_decay=0, fused=True)
    # Up over WARM_UP steps, then down to a tenth.
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / WARM_UP, 1 - 0.9 * step / STEPS))
    start = time.time()
    for step in range(1, STEPS + 1):
        batch = [training[i % len(training)] for i in range((step - 1) * BATCH, step * BATCH)]
        total = 0.0
        for text in batch:
            loss, count = loss_sum(model, tokenizer, text)
            (loss / count / BATCH).backward()
            total += loss.item() / count / BATCH
        norm = torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        rate.step()
        print(f"step {step}: loss {total:.4f}, gradient {norm:.2f}, {time.time() - start:.0f} s", flush=True)
        late = time.time() - start > 60 * MINUTES
        if step % SAVE_EVERY == 0 or step == STEPS or late:
            save(step)
        if late:
            break
    print(f"held-out loss after: {mean_loss(model, tokenizer, held_out):.4f}")


main(*sys.argv[1:])
