"""What it costs to serve more adapters than memory holds: python3 benches/tenants.py PROGRAMS MODEL FOLDER [PLOT.svg]

Runs the examples `loras` and `tenants`, which lie compiled in PROGRAMS, in turn with more and more tenants, three times each, and takes
medians. Needs Python's own library alone.
"""

import pathlib
import re
import statistics
import subprocess
import sys

COUNTS = [64, 128, 256, 512, 1000]
REQUESTS, ROUNDS = 600, 3
LINE = re.compile(r": (\d+)/s; .* at most (\d+) bytes of (\d+); .* ([\d.]+) MB at the end")


def main(programs, model, folder, plot=None):
    programs, folder = pathlib.Path(programs), pathlib.Path(folder)
    folder.mkdir(parents=True)
    subprocess.run([programs / "loras", model, folder, str(max(COUNTS))], check=True)
    runs = {count: [] for count in COUNTS}
    for _ in range(ROUNDS):
        for count in COUNTS:
            command = [programs / "tenants", model, folder, str(count), str(REQUESTS)]
            line = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            runs[count].append([float(number) for number in LINE.search(line).groups()])
    rows = [(count, *map(statistics.median, zip(*runs[count]))) for count in COUNTS]
    for count, rate, most, limit, memory in rows:
        print(f"| {count} | {rate:.0f} | {most / 1e6:.1f} of {limit / 1e6:.1f} MB | {memory:.0f} MB |")
    if plot:
        draw(plot, rows)


def draw(plot, rows):
    width, left, row, top = 760, 120, 30, 48
    most = max(rate for _, rate, *_ in rows)
    parts = []
    for i, (count, rate, _, _, memory) in enumerate(rows):
        y, length = top + row * i, (width - left - 190) * rate / most
        parts.append(f'<text x="12" y="{y + 16}">{count} adapters</text>')
        parts.append(f'<rect x="{left}" y="{y + 2}" width="{length:.1f}" height="{row - 9}" fill="#1b6ca8"/>')
        parts.append(f'<text x="{left + length + 6:.1f}" y="{y + 16}">{rate:.0f} requests/s, {memory:.0f} MB in all</text>')
    title = "Adapters in the memory of 64 (SmolLM2-135M, 12 tokens a request)"
    svg = (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top + row * len(rows) + 12}" font-family="sans-serif" font-size="12">'
           f'<rect width="100%" height="100%" fill="white"/><text x="12" y="24" font-size="15">{title}</text>' + "".join(parts) + "</svg>\n")
    pathlib.Path(plot).write_text(svg)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(*sys.argv[1:5])
