"""A kept roofline table as a picture: every op's bandwidth as a share of a copy's, by dtype and K.

python bench/gpu/plot.py bench/results/gpu-roofline-….json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def plot(file: Path) -> Path:
    """Draw the table of a result beside it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    content = json.loads(file.read_text())
    rows = content["rows"]
    ops = list(dict.fromkeys(row["op"] for row in rows))
    forms = list(dict.fromkeys((row["dtype"], row["k"]) for row in rows))
    figure, axes = pyplot.subplots(figsize=(9, 0.42 * len(ops) + 1.2), layout="constrained")
    height = 0.8 / len(forms)
    for i, form in enumerate(forms):
        own = {row["op"]: row["of_copy"] for row in rows if (row["dtype"], row["k"]) == form}
        places = [ops.index(op) + (i - (len(forms) - 1) / 2) * height for op in own]
        axes.barh(places, list(own.values()), height, label=f"{form[0]}, K = {form[1]}")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(ops)), ops)
    axes.invert_yaxis()
    axes.set_xlabel("minimum traffic over time, as a share of a device-to-device copy of the same run")
    axes.set_title(f"{content['device']}, driver {content['driver'].split()[-1]}, {content['date'][:10]}", fontsize=9)
    axes.legend(fontsize=8)
    target = file.with_suffix(".png")
    figure.savefig(target, dpi=120)
    return target


if __name__ == "__main__":
    print(plot(Path(sys.argv[1])))
