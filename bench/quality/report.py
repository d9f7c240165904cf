"""Tables, plots and the papers' claims, from a kept result."""

from __future__ import annotations

import csv as csv_module
import io
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .claims import CLAIMS, Claim, Point

T95 = (12.71, 4.30, 3.18, 2.78, 2.57)  # Student's t for 1, 2, … degrees of freedom
HEADLINES = (
    "base",
    "individual",
    "multi-task training",
    "average",
    "task arithmetic, λ = 0.3",
    "TIES",
    "FR",
    "EMR",
    "FREE, trained router",
)
INDIVIDUAL = ("methods", "individual", None)
Seeds = list[float]  # a number for each seed

INTRODUCTION = """\
Small models, really trained on this machine from what is installed on it, merged by every method and tested: the tables
of the EMR-Merging (arXiv 2405.17461) and FREE-Merging (arXiv 2411.16815) papers in miniature. Numbers are means over
tasks and then over seeds (of initial weights and of the order of training), with 95 % intervals of Student's t, which
are wide where seeds are few.

Every method has one set of parameters in all domains, its default or its paper's, fixed before any result was seen.
Task arithmetic has λ = 0.3, and 0.4; DARE and Breadcrumbs, which sum as it does, 0.3; TIES its paper's preset; DELLA
its paper's mean of what agrees. FR filters each weight matrix at its default cutoff; of adapters, which are vectors,
each vector (of which the released filters keep a single frequency). How long models are trained was chosen by what base
and individual models reach. A router, trained on 50 samples a task, chooses experts only: a sample keeps its own task's
head, and is tested with the expert that the router gave it; "oracle" gives each its own task's.
"""


class Numbers:
    """What a kept result holds, by domain and point."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content
        self.domains: dict[str, dict[str, Any]] = content["domains"]
        self.scores: dict[tuple[str, Point], dict[str, Seeds]] = {
            (row["domain"], (row["table"], row["label"], row["x"])): row["scores"] for row in content["rows"]
        }
        self.scores |= self._individual()

    def _individual(self) -> dict[tuple[str, Point], dict[str, Seeds]]:
        """What methods that merge a number of tasks are measured by: the individual models of as many."""
        return {
            (domain, ("tasks", INDIVIDUAL[1], x)): {task: self.scores[domain, INDIVIDUAL][task] for task in scores}
            for (domain, (table, _, x)), scores in self.scores.items()
            if table == "tasks"
        }

    def mean(self, domain: str, point: Point) -> Seeds | None:
        """The mean over tasks, by seed."""
        scores = self.scores.get((domain, point))
        return None if scores is None else [statistics.fmean(own) for own in zip(*scores.values(), strict=True)]

    def gain(self, domain: str, better: Point, than: Point) -> Seeds | None:
        """How much better one point is than another, by seed: negative where it is worse."""
        one, other = self.mean(domain, better), self.mean(domain, than)
        if one is None or other is None:
            return None
        sign = 1 if self.domains[domain]["more_is_better"] else -1
        return [sign * (a - b) for a, b in zip(one, other, strict=True)]

    def points(self, table: str, domain: str | None = None) -> list[Point]:
        """A table's points in order, each once."""
        return list(dict.fromkeys(p for own, p in self.scores if p[0] == table and domain in (None, own)))

    def show(self, domain: str, value: Seeds | None, sign: str = "") -> str:
        """Mean and interval, with the digits that the domain's metric deserves."""
        if value is None:
            return ""
        digits = 1 if self.domains[domain]["more_is_better"] else 3
        mean, half = interval(value)
        return f"{mean:{sign}.{digits}f}" + ("" if math.isnan(half) else f" ± {half:.{digits}f}")


def interval(value: Seeds) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval, NaN of a single seed."""
    n = len(value)
    half = T95[min(n - 2, len(T95) - 1)] * statistics.stdev(value) / math.sqrt(n) if n > 1 else math.nan
    return statistics.fmean(value), half


def markdown(content: dict[str, Any], picture: str | None = None) -> str:
    """The whole report."""
    numbers = Numbers(content)
    blocks = [
        "# Quality",
        INTRODUCTION,
        _about(content),
        "## Methods",
        _by_domain(numbers, "methods"),
        "## What the papers report, and whether it shows here",
        "A claim shows where it holds with every seed, does not where it fails with every seed. Beside it the smallest "
        "margin, in the metric's unit; positive is in the claim's favour.",
        _claims(numbers),
        "## EMR's parts",
        _by_domain(numbers, "ablation"),
        "## Masks and rescalers for other methods' merged vectors",
        "Gains are over the same merged vector without them.",
        _modulated(numbers),
        "## Experts' density",
        _by_domain(numbers, "density"),
        "## FR's cutoff: the fraction of all bins that is removed",
        _by_domain(numbers, "cutoff"),
        "## Number of tasks",
        *(_counts(numbers, domain) for domain in numbers.domains),
        f"![number of tasks, cutoff and density]({picture})" if picture else "",
        "## Task by task",
        *(_tasks(numbers, domain) for domain in numbers.domains),
    ]
    return "\n\n".join(block.strip() for block in blocks if block) + "\n"


def summary(content: dict[str, Any]) -> str:
    """The README's table: some methods, a column a domain."""
    return _by_domain(Numbers(content), "methods", HEADLINES)


def csv(content: dict[str, Any]) -> str:
    """A line for every domain, row and task, with a score of each seed."""
    lines = io.StringIO()
    writer = csv_module.writer(lines, lineterminator="\n")
    writer.writerow(("domain", "table", "label", "x", "task", *(f"seed {seed}" for seed in content["seeds"])))
    for row in content["rows"]:
        x = "" if row["x"] is None else row["x"]
        for task, scores in row["scores"].items():
            writer.writerow((row["domain"], row["table"], row["label"], x, task, *scores))
    return lines.getvalue()


def plot(content: dict[str, Any], file: Path) -> None:
    """The curves: a row a sweep, a column a domain."""
    from matplotlib.figure import Figure

    numbers = Numbers(content)
    sweeps = {"tasks": "number of tasks", "cutoff": "bins removed", "density": "experts' density"}
    figure = Figure(figsize=(4 * len(numbers.domains), 10), layout="constrained")
    grid = figure.subplots(len(sweeps), len(numbers.domains), squeeze=False)
    for axes, (table, title) in zip(grid, sweeps.items(), strict=True):
        for axis, (domain, about) in zip(axes, numbers.domains.items(), strict=True):
            for label in dict.fromkeys(point[1] for point in numbers.points(table, domain)):
                own = [point for point in numbers.points(table, domain) if point[1] == label]
                means = [interval(numbers.mean(domain, point) or []) for point in own]
                middle, half = zip(*means, strict=True)
                axis.errorbar(
                    [p[2] for p in own], middle, [0 if math.isnan(h) else h for h in half], label=label, capsize=2
                )
            axis.set(title=domain, xlabel=title, ylabel=_unit(about))
            if table == "density":
                axis.set_xscale("log")
        axes[0].legend(fontsize="small")
    figure.savefig(file, dpi=70)


def _about(content: dict[str, Any]) -> str:
    seeds = ", ".join(map(str, content["seeds"]))
    domains = "; ".join(
        f"{name}: {about['metric']} ({'more' if about['more_is_better'] else 'less'} is better), "
        f"{about['parameters']:,} merged parameters"
        for name, about in content["domains"].items()
    )
    lines = (
        f"- {content['date']}, fastmerge {content['fastmerge']} ({content['commit']}), torch {content['torch']}, "
        f"Python {content['python']}, {content['cpu']}",
        f"- seeds {seeds}{'; a quick run, of less training and fewer tests' if content['quick'] else ''}",
        f"- {content['seconds']} s of work, of which {content['workers']} at a time",
        f"- {domains}",
    )
    return "\n".join(lines)


def markdown_table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    aligned = ["---", *("--:" for _ in headings[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in (headings, aligned, *lines))


def _unit(about: dict[str, Any]) -> str:
    unit: str = about["metric"].partition(",")[0]
    return unit


def _name(point: Point) -> str:
    _, label, x = point
    return label if x is None else f"{label}, {x:g}"


def _by_domain(numbers: Numbers, table: str, labels: Sequence[str] | None = None) -> str:
    points = [point for point in numbers.points(table) if labels is None or point[1] in labels]
    headings = ["", *(f"{name}, {_unit(about)}" for name, about in numbers.domains.items())]
    return markdown_table(
        headings,
        [[_name(p), *(numbers.show(d, numbers.mean(d, p)) for d in numbers.domains)] for p in points],
    )


def _modulated(numbers: Numbers) -> str:
    def cell(domain: str, point: Point) -> str:
        value = numbers.show(domain, numbers.mean(domain, point))
        gain = numbers.show(domain, numbers.gain(domain, point, ("methods", point[1], None)), "+")
        return f"{value} ({gain})"

    return markdown_table(
        ["", *numbers.domains],
        [[p[1], *(cell(d, p) for d in numbers.domains)] for p in numbers.points("modulators")],
    )


def _counts(numbers: Numbers, domain: str) -> str:
    found = numbers.points("tasks", domain)
    counts = sorted({x for _, _, x in found if x is not None})
    labels = dict.fromkeys(label for _, label, _ in found)
    cells = [
        [label, *(numbers.show(domain, numbers.mean(domain, ("tasks", label, x))) for x in counts)] for label in labels
    ]
    return markdown_table([domain, *(f"{x:g}" for x in counts)], cells)


def _tasks(numbers: Numbers, domain: str) -> str:
    every = {point: numbers.scores[domain, point] for point in numbers.points("methods", domain)}
    tasks = list(next(iter(every.values())))
    cells = [[point[1], *(numbers.show(domain, scores[task]) for task in tasks)] for point, scores in every.items()]
    return markdown_table([domain, *tasks], cells)


def _claims(numbers: Numbers) -> str:
    cells = [
        [claim.text, claim.source, *(_verdict(numbers, domain, claim) for domain in numbers.domains)]
        for claim in CLAIMS
    ]
    return markdown_table(["", "source", *numbers.domains], cells)


def _verdict(numbers: Numbers, domain: str, claim: Claim) -> str:
    margin = margins(claim, lambda better, than: numbers.gain(domain, better, than))
    if not margin:
        return ""
    holds = sum(value > 0 for value in margin)
    verdict = "shows" if holds == len(margin) else "does not" if holds == 0 else f"with {holds} of {len(margin)} seeds"
    return f"{verdict}, {numbers.show(domain, margin, '+')}"


def margins(claim: Claim, gain: Callable[[Point, Point], Seeds | None]) -> Seeds:
    """By seed the smallest margin by which a claim holds."""
    pairs = (
        zip(claim.better, claim.than, strict=True)
        if claim.pairwise
        else [(better, than) for better in claim.better for than in claim.than]
    )
    found = [own for better, than in pairs if (own := gain(better, than)) is not None]
    return [min(values) for values in zip(*found, strict=True)]
