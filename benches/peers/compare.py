"""Graftwork beside llama.cpp on the same file, interleaved A B A B, medians.

    pip install cmake ninja && CMAKE_ARGS="-DGGML_NATIVE=ON" pip install llama-cpp-python
    cargo build --release
    python benches/peers/compare.py MODEL.gguf [--lora PEFT_DIR LORA.gguf] [--rounds 5] [--threads 2] [--out results.json]

Prints tokens/s of both, their ratio, and what the LoRA costs each of them. Run it on an idle machine: llama.cpp's
threads wait for each other by spinning and suffer more from neighbours.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys

PEER = """
import json, random, sys, time
from llama_cpp import Llama
model, lora, pp, tg, threads = sys.argv[1], sys.argv[2] or None, *map(int, sys.argv[3:6])
llm = Llama(model, n_ctx=pp + tg + 16, n_threads=threads, n_threads_batch=threads, n_batch=pp, n_ubatch=pp,
            verbose=False, lora_path=lora)
random.seed(1)
tokens = [random.randrange(10, llm.n_vocab() - 10) for _ in range(pp)]
llm.eval(tokens[:32]); llm.reset()
start = time.perf_counter(); llm.eval(tokens); prefill = pp / (time.perf_counter() - start)
llm.reset(); llm.eval(tokens[:1])
start = time.perf_counter()
for i in range(tg): llm.eval([tokens[i]])
print(json.dumps({"prefill": prefill, "decode": tg / (time.perf_counter() - start)}))
"""


def ours(a, lora):
    command = [a.graftwork, "bench", "-m", a.model, "--pp", str(a.pp), "--tg", str(a.tg), "--repeat", "1",
               "--threads", str(a.threads), "--json"] + (["-a", lora] if lora else [])
    r = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {"prefill": r["prefill_tokens_per_second"], "decode": r["decode_tokens_per_second"],
            "read_limit": r["read_limit_gb_per_second"], "multiply_limit": r["multiply_limit_gop_per_second"]}


def peer(a, lora):
    command = [sys.executable, "-c", PEER, a.model, lora or "", str(a.pp), str(a.tg), str(a.threads)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def cpu():
    try:
        return next(l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model")
parser.add_argument("--lora", nargs=2, metavar=("PEFT_DIR", "LORA_GGUF"))
parser.add_argument("--graftwork", default="target/release/graftwork")
parser.add_argument("--pp", type=int, default=512)
parser.add_argument("--tg", type=int, default=128)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--out")
a = parser.parse_args()

cases = {"graftwork": lambda: ours(a, None), "llama.cpp": lambda: peer(a, None)}
if a.lora:
    cases["graftwork + LoRA"] = lambda: ours(a, a.lora[0])
    cases["llama.cpp + LoRA"] = lambda: peer(a, a.lora[1])
runs = {name: [] for name in cases}
for _ in range(a.rounds):
    for name, run in cases.items():
        runs[name].append(run())
median = {name: {key: statistics.median(r[key] for r in rs) for key in rs[0]} for name, rs in runs.items()}
for name, m in median.items():
    print(f"{name:18} prefill {m['prefill']:8.1f}  decode {m['decode']:7.1f} tokens/s")
ratios = {}
for key in ("prefill", "decode"):
    pairs = [g[key] / l[key] for g, l in zip(runs["graftwork"], runs["llama.cpp"])]
    ratios[key] = statistics.median(pairs)
    print(f"{key}: {ratios[key]:.2f} x llama.cpp (median of pairs, {min(pairs):.2f} to {max(pairs):.2f})")
if a.lora:
    for name in ("graftwork", "llama.cpp"):
        for key in ("prefill", "decode"):
            pairs = [1 - x[key] / b[key] for x, b in zip(runs[name + " + LoRA"], runs[name])]
            ratios[f"{name} LoRA cost {key}"] = statistics.median(pairs)
            print(f"{name}: the LoRA costs {100 * statistics.median(pairs):.1f} % of {key}")
if a.out:
    with open(a.out, "w") as f:
        json.dump({"cpu": cpu(), "threads": a.threads, "pp": a.pp, "tg": a.tg, "median": median,
                   "ratios": ratios, "runs": runs}, f, indent=1)
