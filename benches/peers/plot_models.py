"""Draws results of compare.py for several models: python benches/peers/plot_models.py plot.svg NAME=results.json ..."""

import json
import sys

results = {name: json.load(open(path)) for name, path in (word.split("=", 1) for word in sys.argv[2:])}
first = next(iter(results.values()))
sides, colours = ("graftwork", "llama.cpp"), {"graftwork": "#2f6f4f", "llama.cpp": "#b0792f"}
width, bar, left = 720, 16, 90
rows, y = [], 64
for key, what in (("prefill", "pp"), ("decode", "tg")):
    most = max(r["median"][side][key] for r in results.values() for side in sides)
    rows.append(f'<text x="12" y="{y}" font-weight="bold">{key} of {first[what]} tokens, tokens/s</text>')
    y += 12
    for name, r in results.items():
        for side in sides:
            v = r["median"][side][key]
            w = (width - left - 170) * v / most
            label = f'{v:.0f}' + (f' ({r["ratios"][key]:.2f} x)' if side == "graftwork" else " llama.cpp")
            rows.append(f'<rect x="{left}" y="{y}" width="{w:.1f}" height="{bar - 3}" fill="{colours[side]}"/>'
                        f'<text x="{left + w + 6:.1f}" y="{y + 11}">{label}</text>')
            if side == sides[0]:
                rows.append(f'<text x="{left - 8}" y="{y + 20}" text-anchor="end">{name}</text>')
            y += bar
        y += 8
    y += 30
title = f'Random weights of the shape of TinyLlama-1.1B, {first["threads"]} threads, {first["cpu"]}'
svg = (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y - 20}" font-family="sans-serif" font-size="12">'
       f'<rect width="100%" height="100%" fill="white"/><text x="12" y="28" font-size="15">{title}</text>' + "".join(rows) + "</svg>\n")
open(sys.argv[1], "w").write(svg)
