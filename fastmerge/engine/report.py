"""What a finished job tells its caller."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Report:
    """`outputs` are the folders in `out`, of several results; `results` the method's numbers per model, such as
    rescalers, under OUTPUT/NAME of several results; `seconds` counts the work, not the imports."""

    out: str
    method: str
    models: list[str]
    tensors: int
    parameters: int
    bytes_read: int
    bytes_written: int
    seconds: float
    backend: str
    outputs: list[str] = field(default_factory=list)
    results: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def gigabytes_per_second(self) -> float:
        return (self.bytes_read + self.bytes_written) / self.seconds / 1e9

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON."""
        return asdict(self) | {"gigabytes_per_second": round(self.gigabytes_per_second, 3)}
