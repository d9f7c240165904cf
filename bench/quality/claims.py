"""Orderings that the papers report, and whether they show here."""

from __future__ import annotations

from dataclasses import dataclass

from .methods import BINS, MODULATED

Point = tuple[str, str, float | None]  # table, label, x


def points(table: str, *labels: str) -> tuple[Point, ...]:
    return tuple((table, label, None) for label in labels)


@dataclass(frozen=True)
class Claim:
    """Every one of `better` is above every one of `than`; or, if `pairwise`, above its own of `than`."""

    text: str
    source: str
    better: tuple[Point, ...]
    than: tuple[Point, ...]
    pairwise: bool = False


SINGLE = ("average", "task arithmetic, λ = 0.3", "task arithmetic, λ = 0.4", "TIES", "DARE", "DELLA", "Breadcrumbs")
BOTH = ("task arithmetic, λ = 0.3", "TIES")
CLAIMS = (
    Claim(
        "FR is above the other ways to one model",
        "FREE, Tables 2–6",
        points("methods", "FR"),
        points("methods", *SINGLE),
    ),
    Claim("FR before TIES improves it", "FREE, Table 8", points("methods", "TIES + FR"), points("methods", "TIES")),
    Claim(
        "FR's coefficients are better than equal ones",
        "FREE, Table 7",
        points("methods", "FR"),
        points("methods", "FR, equal coefficients"),
    ),
    Claim(
        "FR is better for removing 10 to 50 % of the bins",
        "FREE, Table 14",
        tuple(("cutoff", "FR", x) for x in BINS if 0 < x < 0.6),
        (("cutoff", "FR", 0.0),),
    ),
    Claim(
        "removing 60 % is too much: 30 % is better",
        "FREE, Table 14",
        (("cutoff", "FR", 0.3),),
        (("cutoff", "FR", 0.6),),
    ),
    Claim(
        "experts improve FR, with a trained router",
        "FREE, Table 7",
        points("methods", "FREE, trained router"),
        points("methods", "FR"),
    ),
    Claim("FREE is above EMR", "FREE, Tables 2–6", points("methods", "FREE, oracle router"), points("methods", "EMR")),
    Claim(
        "EMR is above every way to one model",
        "EMR, Tables 1–6",
        points("methods", "EMR"),
        points("methods", *SINGLE, "FR"),
    ),
    Claim(
        "masks and rescalers improve task arithmetic and TIES",
        "EMR, Table 7",
        points("modulators", *BOTH),
        points("methods", *BOTH),
        pairwise=True,
    ),
    Claim(
        "with masks and rescalers for all, electing is best",
        "EMR, Table 7",
        points("methods", "EMR"),
        points("modulators", *MODULATED),
    ),
    Claim(
        "masks, and rescalers, each improve what is elected",
        "EMR, Table 8",
        points("ablation", "elect + mask", "elect + rescale"),
        points("ablation", "elect"),
    ),
    Claim(
        "masks with rescalers are better than either",
        "EMR, Table 8",
        points("ablation", "elect + mask + rescale"),
        points("ablation", "elect + mask", "elect + rescale"),
    ),
)
