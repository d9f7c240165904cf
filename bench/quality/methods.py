"""The tables' rows as data: which method, with which parameters, and how its result is tested.

A method has one set of parameters in all domains, which is its default or its paper's and was fixed before any result
was seen. What sums task vectors takes task arithmetic's usual λ of 0.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from .domain import Domain

# merged: one model for all tasks; own: a model per task; trained, random: experts that a router chooses; elected: what
# is left of EMR without masks, rescalers, or both.
Reading = Literal["base", "individual", "multitask", "merged", "own", "trained", "random", "elected"]
SAMPLES = 50  # a task, for training the router


@dataclass(frozen=True)
class Row:
    """One row of a table, or point of a curve: `x` is where it is, and what `tasks` counts if given."""

    table: str
    label: str
    method: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    reading: Reading = "merged"
    x: float | None = None
    tasks: int | None = None

    def test(self) -> str:
        """What is tested: rows of different tables can be of the same."""
        return repr((self.method, sorted(self.parameters.items()), self.reading, self.tasks))


SUM = {"scale": 0.3}
TIES = {"preset": "paper"}
PLAIN: dict[str, tuple[str, dict[str, Any]]] = {
    "average": ("linear", {}),
    "task arithmetic, λ = 0.3": ("task_arithmetic", SUM),
    "task arithmetic, λ = 0.4": ("task_arithmetic", {"scale": 0.4}),
    "TIES": ("ties", TIES),
    "DARE": ("dare_linear", SUM),
    "DELLA": ("della", {"merge": "mean"}),
    "Breadcrumbs": ("breadcrumbs", SUM),
    "FR": ("fr", {}),
    "FR, equal coefficients": ("task_arithmetic", {"normalize": True, "prefilter": {}}),
    "FR, released vision": ("fr", {"preset": "released-vision"}),
    "FR, released LLM": ("fr", {"preset": "released-llm"}),
    "TIES + FR": ("ties", TIES | {"prefilter": {}}),
}
ROUTERS: dict[str, Reading] = {"oracle": "own", "trained": "trained", "random": "random"}
ABLATION = {
    "elect": {},
    "elect + mask": {"mask": True},
    "elect + rescale": {"rescale": True},
    "elect + mask + rescale": {"mask": True, "rescale": True},
}
MODULATED: dict[str, tuple[str, dict[str, Any]]] = {
    "average": ("task_arithmetic", {"normalize": True}),
    **{label: PLAIN[label] for label in ("task arithmetic, λ = 0.3", "TIES", "DARE", "DELLA", "Breadcrumbs")},
    "FR, equal coefficients": PLAIN["FR, equal coefficients"],
}
DENSITIES = (0.001, 0.003, 0.01, 0.03, 0.1)
BINS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)  # FREE-Merging's Table 14
COUNTED: dict[str, tuple[str, dict[str, Any], Reading]] = {
    "average": ("linear", {}, "merged"),
    "task arithmetic, λ = 0.3": ("task_arithmetic", SUM, "merged"),
    "TIES": ("ties", TIES, "merged"),
    "FR": ("fr", {}, "merged"),
    "EMR": ("emr", {}, "own"),
    "FREE, oracle router": ("free", {}, "own"),
}


def rows(domain: Domain) -> list[Row]:
    """All rows of a domain."""
    count = len(domain.tasks)
    every = [
        Row("methods", "base", reading="base"),
        Row("methods", "individual", reading="individual"),
        Row("methods", "multi-task training", reading="multitask"),
        *(Row("methods", label, *own) for label, own in PLAIN.items()),
        Row("methods", "EMR", "emr", reading="own"),
        *(Row("methods", f"FREE, {name} router", "free", reading=reading) for name, reading in ROUTERS.items()),
        *(Row("ablation", label, "emr", own, "elected") for label, own in ABLATION.items()),
        *(
            Row("modulators", label, method, own | {"modulators": True}, "own")
            for label, (method, own) in MODULATED.items()
        ),
        *(Row("density", "FREE, oracle router", "free", {"expert_density": d}, "own", x=d) for d in DENSITIES),
        *(Row("cutoff", "FR", "fr", {"bins": share}, x=share) for share in BINS),
        *(
            Row("tasks", label, *own, x=number, tasks=number if number < count else None)
            for label, own in COUNTED.items()
            for number in range(2, count + 1)
        ),
    ]
    return [replace(row, parameters=_told(row, domain)) for row in every]


def _told(row: Row, domain: Domain) -> dict[str, Any]:
    """A row's parameters, with what a filter must know of the domain's tensors."""
    own = dict(row.parameters)
    if "prefilter" in own:
        own["prefilter"] = own["prefilter"] | domain.filtering
    elif row.method in ("fr", "free"):
        own |= domain.filtering
    if own.get("preset") == "released-vision":
        own["targets"] = domain.inner  # its own patterns are for the names of other models
    return own
