"""Draws the results of the bench `ggml` as an SVG: python benches/peers/plot_layers.py layers.json plot.svg [OUTPUTS INPUTS]

One panel for 1 row and one for 512, per format a bar for each side: per cent of what the machine reads or multiplies, the mean
over the shapes measured, or that of one shape."""

import json
import sys

r = json.load(open(sys.argv[1]))
shape = [int(n) for n in sys.argv[3:5]]
layers = [l for l in r["layers"] if not shape or [l["outputs"], l["inputs"]] == shape]
sides = {"graftwork": ("percent", "#2f6f4f"), "ggml": ("ggml_percent", "#b0792f")}
limits = {1: f'{r["read_limit_gb_per_second"]:.1f} GB/s read', 512: f'{r["multiply_limit_gop_per_second"]:.0f} GOP/s multiplied'}
width, bar, left = 720, 14, 70
rows, y = [], 84
for n, limit in limits.items():
    panel = [l for l in layers if l["rows"] == n]
    means = {}
    for f in dict.fromkeys(l["format"] for l in panel):
        those = [l for l in panel if l["format"] == f]
        means[f] = {s: sum(l[key] for l in those) / len(those) for s, (key, _) in sides.items()}
    most = max([100] + [v for m in means.values() for v in m.values()])
    rows.append(f'<text x="12" y="{y}" font-weight="bold">{n} row{"s" if n > 1 else ""}: % of {limit}</text>')
    y += 12
    top = y
    for f, mean in means.items():
        rows.append(f'<text x="{left - 8}" y="{y + bar + 4}" text-anchor="end">{f}</text>')
        for side, v in mean.items():
            w = (width - left - 60) * v / most
            rows.append(f'<rect x="{left}" y="{y + 1}" width="{w:.1f}" height="{bar - 2}" fill="{sides[side][1]}"/>'
                        f'<text x="{left + w + 5:.1f}" y="{y + 11}" font-size="11">{v:.0f}</text>')
            y += bar
        y += 6
    x = left + (width - left - 60) * 100 / most
    rows.append(f'<line x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{y - 6}" stroke="black" stroke-dasharray="3 3"/>')
    y += 30
legend, x = "", 12
for side, (_, colour) in sides.items():
    legend += f'<rect x="{x}" y="42" width="12" height="12" fill="{colour}"/><text x="{x + 18}" y="53">{side}</text>'
    x += 110
what = f"[{shape[0]}, {shape[1]}]" if shape else f'mean of {len({(l["outputs"], l["inputs"]) for l in layers})} shapes'
title = f'Linear layers, {what}, {r["threads"]} threads, {r["isa"]}'
svg = (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y - 10}" font-family="sans-serif" font-size="13">'
       f'<rect width="100%" height="100%" fill="white"/><text x="12" y="28" font-size="16">{title}</text>' + legend + "".join(rows) + "</svg>\n")
open(sys.argv[2], "w").write(svg)
