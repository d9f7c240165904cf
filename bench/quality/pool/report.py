"""The kept result as Markdown, CSV and plots, beside the paper's numbers."""

from __future__ import annotations

import csv as csv_module
import io
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..report import interval, markdown_table
from .methods import METHODS
from .paper import CLAIMS, COUNTS, IRRELEVANT, NOISY, RELEVANT, TABLE, Claim

Seeds = list[float]
PARTS = {
    IRRELEVANT: "irrelevant models join four (four tasks tested)",
    RELEVANT: "relevant models join four (all tasks tested)",
}
INTRODUCTION = """\
What FW-Merging's Figure 1 and Table 3 (arXiv 2503.12649) report, in miniature: small vision transformers, really
trained on this machine to read twenty kinds of characters, merged as their number grows. Numbers are accuracies in %,
means over the tested tasks and then over seeds, with 95 % intervals of Student's t; the paper's, of ViT-B/32 and other
tasks, stand below ours in brackets. Nothing was tuned to come near them.

AdaMerging and FW-Merging minimise the entropy of predictions for unlabelled test samples of the tested tasks, as in the
paper's Appendix B.4, AdaMerging by 300 steps (200 where relevant models join) of 16 samples of each, FW-Merging by as
many gradients at most, of 32 samples of each (16 of twenty tasks) that stay the same. Soft FW starts from the base
model, chooses three models a step, and gives each layer its coefficients; hard FW chooses for each layer, and starts
from AdaMerging's result, as the paper's on images (whose Table 3 has soft FW alone). Task arithmetic and DARE have
λ = 0.3, TIES its paper's preset. The paper's FW chooses by a cosine and throws θ_t away in soft steps; ours are the
library's defaults.
"""


class Numbers:
    """Means over tasks, by seed."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.found: dict[tuple[str, str, int], Seeds] = {
            (row["part"], row["method"], row["x"]): [
                statistics.fmean(own) for own in zip(*row["scores"].values(), strict=True)
            ]
            for row in content["rows"]
        }

    def counts(self, part: str) -> list[int]:
        return sorted({x for own, _, x in self.found if own == part})

    def change(self, part: str, method: str) -> Seeds:
        """From the smallest pool to the largest; a noisy model's from the pool without it."""
        counts = self.counts(part)
        before = self.found[IRRELEVANT if part == NOISY else part, method, counts[0] - (part == NOISY)]
        return [b - a for a, b in zip(before, self.found[part, method, counts[-1]], strict=True)]


def markdown(content: dict[str, Any], picture: str) -> str:
    """The whole report."""
    numbers = Numbers(content)
    blocks = ["# The size of the pool", INTRODUCTION, _about(content)]
    for part, title in PARTS.items():
        blocks += [f"## As {title}", _growth(numbers, part)]
    blocks += [
        "## With one model of another initialisation",
        "A fine-tune of another base model joins four (the paper's Figure 1c does so for language models).",
        _noisy(numbers),
        "## What the paper reports, and whether it shows here",
        "A claim shows where it holds with every seed. Beside it the change in points, or the distance.",
        markdown_table(["", "ours", "the paper's"], [_claim(numbers, claim) for claim in CLAIMS]),
        f"![accuracy, time and memory by the size of the pool]({picture})",
        "## Time and memory of a step",
        _costs(content["costs"]),
    ]
    return "\n\n".join(block.strip() for block in blocks) + "\n"


def csv(content: dict[str, Any]) -> str:
    """A line for every part, method, pool and task, with a score of each seed."""
    lines = io.StringIO()
    writer = csv_module.writer(lines, lineterminator="\n")
    writer.writerow(("part", "method", "models", "task", *(f"seed {seed}" for seed in content["seeds"])))
    for row in content["rows"]:
        for task, scores in row["scores"].items():
            writer.writerow((row["part"], row["method"], row["x"], task, *scores))
    return lines.getvalue()


def plot(content: dict[str, Any], file: Path) -> None:
    """Accuracies of both parts, the paper's dashed; then what a step costs."""
    from matplotlib.figure import Figure

    numbers = Numbers(content)
    figure = Figure(figsize=(17, 4.5), layout="constrained")
    axes = figure.subplots(1, 4)
    for axis, (part, title) in zip(axes, PARTS.items(), strict=False):
        for i, method in enumerate(METHODS):
            counts = [x for x in numbers.counts(part) if (part, method, x) in numbers.found]
            means, halves = zip(*(interval(numbers.found[part, method, x]) for x in counts), strict=True)
            bars = [0 if math.isnan(half) else half for half in halves]
            axis.errorbar(counts, means, bars, label=method, color=f"C{i}", capsize=2)
            if method in TABLE[part]:
                axis.plot(COUNTS, TABLE[part][method], "--", color=f"C{i}", alpha=0.4, linewidth=1)
        axis.set(xlabel="models", ylabel="accuracy in %", title=title)
    axes[0].legend(fontsize="small", title="dashed: the paper's")
    for axis, key, unit in zip(axes[2:], ("seconds", "memory_mib"), ("s a step", "MiB"), strict=True):
        for method in dict.fromkeys(row["method"] for row in content["costs"]):
            rows = [row for row in content["costs"] if row["method"] == method]
            axis.plot([row["x"] for row in rows], [row[key] for row in rows], "o-", label=method, markersize=3)
        axis.set(xlabel="models", ylabel=unit, ylim=(0, None))
    axes[3].legend(fontsize="small")
    figure.savefig(file, dpi=70)


def _about(content: dict[str, Any]) -> str:
    return "\n".join(
        (
            f"- {content['date']}, fastmerge {content['fastmerge']} ({content['commit']}), torch {content['torch']}, "
            f"Python {content['python']}, {content['cpu']}",
            f"- seeds {', '.join(map(str, content['seeds']))}"
            f"{'; a quick run, of less training and fewer tests' if content['quick'] else ''}",
            f"- {content['seconds']} s of merging and testing, of which {content['workers']} at a time",
        )
    )


def _show(value: Seeds, sign: str = "") -> str:
    mean, half = interval(value)
    return f"{mean:{sign}.1f}" + ("" if math.isnan(half) else f" ± {half:.1f}")


def _growth(numbers: Numbers, part: str) -> str:
    counts = numbers.counts(part)
    lines = []
    for method in ("base", "individual", *METHODS):
        own = [numbers.found.get((part, method, x)) for x in counts]
        change = _show(numbers.change(part, method), "+") if method in METHODS and len(counts) > 1 else ""
        lines.append([method, *("" if value is None else _show(value) for value in own), change])
        if method in TABLE[part]:
            paper = TABLE[part][method]
            told = [f"[{paper[COUNTS.index(x)]}]" if x in COUNTS else "" for x in counts]
            lines.append(["", *told, f"[{paper[-1] - paper[0]:+.1f}]"])
    return markdown_table(["models", *map(str, counts), "change"], lines)


def _noisy(numbers: Numbers) -> str:
    lines = [
        [
            method,
            _show(numbers.found[IRRELEVANT, method, numbers.counts(NOISY)[-1] - 1]),
            _show(numbers.found[NOISY, method, numbers.counts(NOISY)[-1]]),
            _show(numbers.change(NOISY, method), "+"),
        ]
        for method in METHODS
    ]
    return markdown_table(["", "four models", "and one of another base", "change"], lines)


def _claim(numbers: Numbers, claim: Claim) -> Sequence[str]:
    if claim.than is None:
        change = numbers.change(claim.part, claim.method)
    else:
        last = numbers.counts(claim.part)[-1]
        pair = (numbers.found[claim.part, method, last] for method in (claim.method, claim.than))
        change = [a - b for a, b in zip(*pair, strict=True)]
    holds = sum(claim.least <= value <= claim.most for value in change)
    verdict = "shows" if holds == len(change) else "does not" if not holds else f"with {holds} of {len(change)} seeds"
    return claim.text, f"{verdict}, {_show(change, '+')}", _reported(claim)


def _reported(claim: Claim) -> str:
    own = TABLE.get(claim.part, {}).get(claim.method)
    if own is None:
        return "Figure 1c"
    than = own[0] if claim.than is None else TABLE[claim.part][claim.than][-1]
    return f"{own[-1] - than:+.1f}"


def _costs(rows: list[dict[str, Any]]) -> str:
    counts = sorted({row["x"] for row in rows})
    cells = {(row["method"], row["x"]): f"{row['seconds']:.2f} s, {row['memory_mib']:.0f} MiB" for row in rows}
    methods = dict.fromkeys(row["method"] for row in rows)
    about = (
        f"Of models of {rows[0]['model_mib']:.0f} MiB (bfloat16) on disk and in the page cache: the median step, and "
        "the peak of memory beyond the process itself and mapped files. A step of soft FW has five inner ones. Beside "
        "it AdaMerging as in its released code, by autograd through all task vectors in memory."
    )
    return (
        about
        + "\n\n"
        + markdown_table(["models", *map(str, counts)], [[m, *(cells[m, x] for x in counts)] for m in methods])
    )
