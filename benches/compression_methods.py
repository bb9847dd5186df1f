"""What methods of compression lose of a full fine-tune, as a table of docs/compression.md and a plot.

    python3 benches/compression_methods.py BASE TUNED CALIBRATION.jsonl HELD_OUT.jsonl FOLDER [METHOD ...]

Compresses TUNED with `graftwork compress` by every method, keeps deltas and reports in FOLDER (a report that is there is not made
again), and prints the table. Nothing but Python's own library is needed.
"""

import json
import pathlib
import subprocess
import sys

GRAFTWORK = pathlib.Path(__file__).parents[1] / "target/release/graftwork"

# Name, arguments, whether calibrated.
METHODS = [
    ("Delta-CoMe, 1 bit", ["--method", "delta-come"], True),
    ("Delta-CoMe, 1 bit, not calibrated", ["--method", "delta-come"], False),
    ("Delta-CoMe as published, 1 bit", ["--method", "delta-come-published", "--bits", "1"], True),
    ("low rank, 1 bit", ["--method", "low-rank"], True),
    ("low rank, 1 bit, not calibrated", ["--method", "low-rank"], False),
    ("signs", ["--method", "bitdelta"], True),
    ("signs, not calibrated", ["--method", "bitdelta"], False),
    ("sparse, 1 bit", ["--method", "sparse", "--bits", "1"], False),
    ("ternary", ["--method", "ternary"], True),
    ("Delta-CoMe, 1/2 bit", ["--method", "delta-come", "--bits", "0.5"], True),
    ("Delta-CoMe, 1/4 bit", ["--method", "delta-come", "--bits", "0.25"], True),
    ("dense, BF16", ["--method", "dense"], False),
]


def slug(name):
    """What files of a method are called."""
    return name.replace(", ", "-").replace(" ", "-").replace("/", "-of-").lower()


def main(base, tuned, calibration, held_out, folder, only):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, arguments, is_calibrated in METHODS:
        if only and name not in only:
            continue
        report = folder / f"{slug(name)}.json"
        if not report.exists():
            command = [GRAFTWORK, "compress", "--base", base, "--tuned", tuned, *arguments, "--held-out", held_out]
            command += ["--calib", calibration] if is_calibrated else []
            command += ["-o", folder / f"{slug(name)}.delta", "--json"]
            found = subprocess.run(command, check=True, capture_output=True, text=True)
            report.write_text(found.stdout)
        rows.append((name, json.loads(report.read_text())))
    print("| | file, MB | bits/weight, linear layers | all | error of weights | KL to the tuned model | same likeliest token |")
    print("|---|---|---|---|---|---|---|")
    if rows:
        base = rows[0][1]["base_to_tuned"]
        print(f"| base | | | | 1 | {base['kl']:.4f} | {100 * base['top1']:.1f} % |")
    for name, r in rows:
        d = r["delta_to_tuned"]
        print(f"| {name} | {r['bytes'] / 1e6:.1f} | {r['linear_bits_per_weight']:.3f} | {r['bits_per_weight']:.3f} "
              f"| {r['relative_error']:.3f} | {d['kl']:.4f} | {100 * d['top1']:.1f} % |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 6:
        sys.exit(__doc__)
    main(*sys.argv[1:6], sys.argv[6:])
