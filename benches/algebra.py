"""What merging a LoRA into a quantized base loses: python3 benches/algebra.py FOLDER [PLOT.svg]

Merges examples/adapters/tools-lora into SmolLM2 (Q4_1) in several formats, and compares the logits with those of transformers and peft
(tests/golden/smollm2) through `graftwork verify`. Needs target/release/graftwork, and Python's own library alone.
"""

import json
import math
import pathlib
import struct
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
GRAFTWORK = ROOT / "target/release/graftwork"
LORA = ROOT / "examples/adapters/tools-lora"
FORMATS = ["kept", "Q4_0", "Q4_K_M", "Q5_1", "Q5_K_M", "Q6_K", "Q8_0", "F16"]


def reference(folder):
    """The golden logits under the name that `verify` expects."""
    data = (ROOT / "tests/golden/smollm2/tools.expected.safetensors").read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    header["logits"] = header.pop("logits_last8")
    text = json.dumps(header).encode()
    path = folder / "reference.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    return path


def run(*arguments):
    done = subprocess.run([GRAFTWORK, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return done.stdout


def kl(path, *arguments):
    report = json.loads(run("verify", *arguments, "--reference", path, "--json"))
    return report["logits"]["kl"], report["logits"]["top1"]


def main(folder, plot=None):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = reference(folder)
    rows = [("base alone", 98.4, *kl(path, "-m", "smollm2")), ("beside the base", 98.4, *kl(path, "-m", "smollm2", "-a", LORA))]
    for name in FORMATS:
        out = folder / f"{name}.gguf"
        run("merge", "-m", "smollm2", "-a", LORA, "-o", out, *([] if name == "kept" else ["--to", name]))
        label = "merged, Q4_1 kept" if name == "kept" else f"merged, {name}"
        rows.append((label, out.stat().st_size / 1e6, *kl(path, "-m", out)))
        out.unlink()
    for label, size, divergence, top1 in rows:
        print(f"| {label} | {size:.1f} MB | {divergence:.4f} | {100 * top1:.1f} % |")
    if plot:
        draw(plot, rows)


def draw(plot, rows):
    width, left, right, row, top = 760, 190, 70, 26, 48
    low, high = -4, 1
    bottom = top + row * len(rows)

    def x(value):
        return left + (width - left - right) * (math.log10(value) - low) / (high - low)

    parts = []
    for d in range(low, high + 1):
        parts.append(f'<line x1="{x(10**d):.1f}" x2="{x(10**d):.1f}" y1="{top - 6}" y2="{bottom}" stroke="#ddd"/>')
        parts.append(f'<text x="{x(10**d):.1f}" y="{bottom + 16}" text-anchor="middle">{10**d:g}</text>')
    for i, (label, _, divergence, _) in enumerate(rows):
        y = top + row * i
        color = "#888" if i == 0 else "#3f7d20" if i == 1 else "#1b6ca8"
        end = x(max(divergence, 10**low))
        parts.append(f'<text x="12" y="{y + 14}">{label}</text>')
        parts.append(f'<rect x="{left}" y="{y + 2}" width="{end - left:.1f}" height="{row - 9}" fill="{color}"/>')
        parts.append(f'<text x="{end + 6:.1f}" y="{y + 14}">{divergence:.4f}</text>')
    title = "KL per position to peft's answers with the tools LoRA (SmolLM2-135M)"
    svg = (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{bottom + 26}" font-family="sans-serif" font-size="12">'
           f'<rect width="100%" height="100%" fill="white"/><text x="12" y="24" font-size="15">{title}</text>' + "".join(parts) + "</svg>\n")
    pathlib.Path(plot).write_text(svg)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:3])
