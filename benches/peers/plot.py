"""Draws the results of compare.py as an SVG: python benches/peers/plot.py results.json plot.svg"""

import json
import sys

r = json.load(open(sys.argv[1]))
names, colours = list(r["median"]), {"graftwork": "#2f6f4f", "llama.cpp": "#b0792f"}
width, bar, left = 720, 26, 150
rows, y = [], 64
for key in ("prefill", "decode"):
    most = max(r["median"][n][key] for n in names)
    rows.append(f'<text x="12" y="{y}" font-weight="bold">{key} of {r["pp" if key == "prefill" else "tg"]} tokens, tokens/s</text>')
    y += 12
    for n in names:
        v = r["median"][n][key]
        w = (width - left - 90) * v / most
        colour = colours[n.split(" +")[0]]
        opacity = 0.6 if "LoRA" in n else 1
        rows.append(f'<text x="{left - 8}" y="{y + 18}" text-anchor="end">{n}</text>'
                    f'<rect x="{left}" y="{y + 3}" width="{w:.1f}" height="{bar - 6}" fill="{colour}" fill-opacity="{opacity}"/>'
                    f'<text x="{left + w + 6:.1f}" y="{y + 18}">{v:.0f}</text>')
        y += bar
    y += 34
title = f'SmolLM2-135M Q4_1, {r["threads"]} threads, {r["cpu"]}'
svg = (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y - 10}" font-family="sans-serif" font-size="13">'
       f'<rect width="100%" height="100%" fill="white"/><text x="12" y="28" font-size="16">{title}</text>' + "".join(rows) + "</svg>\n")
open(sys.argv[2], "w").write(svg)
