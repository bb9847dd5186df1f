"""Draws the reports of compression_methods.py: python3 benches/compression_plot.py plot.svg NAME=FOLDER ..."""

import json
import math
import pathlib
import sys

from compression_methods import METHODS, slug

COLORS = ["#1b6ca8", "#d1495b", "#3f7d20"]
WIDTH, LEFT, RIGHT, ROW = 880, 290, 40, 24


def main(out, series):
    found = []
    for name, folder in series:
        reports = {method: pathlib.Path(folder) / f"{slug(method)}.json" for method, *_ in METHODS}
        found.append((name, {m: json.loads(p.read_text()) for m, p in reports.items() if p.exists()}))
    methods = [m for m, *_ in METHODS if any(m in reports for _, reports in found)]

    # KL as a share of the base's: 1 is the base, 0 the tuned model.
    def share(report):
        return report["delta_to_tuned"]["kl"] / report["base_to_tuned"]["kl"]

    least = min(share(r) for _, reports in found for r in reports.values())
    decades = math.ceil(-math.log10(least))

    def x(value):
        return LEFT + (WIDTH - LEFT - RIGHT) * (math.log10(value) + decades) / decades

    parts, y = [], 64
    bottom = y + ROW * len(methods)
    for d in range(-decades, 1):
        parts.append(f'<line x1="{x(10**d):.1f}" x2="{x(10**d):.1f}" y1="{y - 8}" y2="{bottom}" stroke="#ddd"/>')
        parts.append(f'<text x="{x(10**d):.1f}" y="{bottom + 16}" text-anchor="middle">{10**d:g}</text>')
    parts.append(f'<line x1="{x(1 / 3):.1f}" x2="{x(1 / 3):.1f}" y1="{y - 8}" y2="{bottom}" stroke="#888" stroke-dasharray="4 3"/>')
    parts.append(f'<text x="{x(1 / 3):.1f}" y="{bottom + 16}" text-anchor="middle">1/3</text>')
    for method in methods:
        bits = next(r[method]["linear_bits_per_weight"] for _, r in found if method in r)
        parts.append(f'<text x="12" y="{y + 10}">{method} ({bits:.2f} bits)</text>')
        for color, (_, reports) in zip(COLORS, found):
            if method in reports:
                parts.append(f'<circle cx="{x(share(reports[method])):.1f}" cy="{y + 6}" r="5" fill="{color}" fill-opacity="0.85"/>')
        y += ROW
    for i, (name, _) in enumerate(found):
        parts.append(f'<circle cx="{LEFT + 10 + 200 * i}" cy="42" r="5" fill="{COLORS[i]}"/><text x="{LEFT + 20 + 200 * i}" y="46">{name}</text>')
    title = "KL to the tuned model, as a share of the base's (SmolLM2-135M, linear layers)"
    svg = (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{bottom + 28}" font-family="sans-serif" font-size="12">'
           f'<rect width="100%" height="100%" fill="white"/><text x="12" y="22" font-size="15">{title}</text>' + "".join(parts) + "</svg>\n")
    pathlib.Path(out).write_text(svg)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(sys.argv[1], [argument.split("=", 1) for argument in sys.argv[2:]])
