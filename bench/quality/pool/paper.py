"""What FW-Merging's Table 3 reports, accuracies in % of ViT-B/32 by the number of models, and claims made of it."""

from __future__ import annotations

from dataclasses import dataclass

COUNTS = (4, 6, 8, 10, 12, 14, 16, 18, 20)
IRRELEVANT, RELEVANT, NOISY = "irrelevant", "relevant", "noisy"
TABLE: dict[str, dict[str, tuple[float, ...]]] = {
    IRRELEVANT: {
        "DARE": (73.6, 64.1, 48.5, 40.6, 31.7, 23.6, 17.9, 12.2, 9.2),
        "task arithmetic": (70.3, 64.1, 57.1, 52.9, 47.9, 40.1, 33.3, 25.9, 21.2),
        "TIES": (65.7, 64.4, 63.6, 62.9, 61.9, 57.7, 52.5, 49.2, 46.4),
        "AdaMerging": (75.2, 74.6, 73.4, 72.8, 71.4, 69.9, 68.6, 64.6, 61.0),
        "FW soft": (74.1, 73.9, 74.0, 73.9, 74.1, 74.0, 74.1, 74.0, 74.2),
    },
    RELEVANT: {
        "DARE": (57.3, 54.0, 48.2, 43.5, 39.1, 36.1, 32.3, 27.8, 24.2),
        "task arithmetic": (59.2, 58.4, 57.2, 55.0, 52.3, 48.9, 45.3, 40.3, 36.3),
        "TIES": (60.2, 61.6, 63.9, 63.9, 63.7, 62.0, 59.7, 57.3, 55.6),
        "AdaMerging": (59.6, 64.0, 64.7, 65.4, 65.1, 64.1, 62.7, 60.7, 58.9),
        "FW soft": (59.2, 63.2, 64.5, 66.2, 67.5, 68.0, 68.3, 68.4, 68.3),
    },
}


@dataclass(frozen=True)
class Claim:
    """That from `first` models to `last` a method's accuracy changes by at least `least` and at most `most` points; of
    another method's, where `than` is given, by how much it is above at `last`."""

    text: str
    part: str
    method: str
    least: float = float("-inf")
    most: float = float("inf")
    than: str | None = None


CLAIMS = (
    Claim("irrelevant models leave soft FW within a point", IRRELEVANT, "FW soft", -1, 1),
    *(
        Claim(f"irrelevant models cost {name} more than a point", IRRELEVANT, name, most=-1)
        for name in ("task arithmetic", "TIES", "DARE", "AdaMerging")
    ),
    Claim("with all irrelevant models soft FW is above AdaMerging", IRRELEVANT, "FW soft", 0, than="AdaMerging"),
    Claim("relevant models improve soft FW", RELEVANT, "FW soft", 0),
    *(
        Claim(f"relevant models, many of them, make {name} worse", RELEVANT, name, most=0)
        for name in ("task arithmetic", "TIES", "DARE")
    ),
    Claim("with all relevant models soft FW is above AdaMerging", RELEVANT, "FW soft", 0, than="AdaMerging"),
    Claim("a model of another base leaves soft FW within a point", NOISY, "FW soft", -1, 1),
    Claim("a model of another base costs TIES accuracy", NOISY, "TIES", most=0),
)
