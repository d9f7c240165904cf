"""Which parameters hold for which tensor: the method's own, and what patterns of tensor names change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from ..methods import build
from ..methods._declaration import Method

Override = tuple[str, Mapping[str, Any]]  # a pattern of tensor names, and the parameters it changes


@dataclass(slots=True)
class Parameters:
    """A declared method, and for every tensor the method with the parameters that hold there; later patterns win."""

    method: Method
    overrides: tuple[Override, ...] = ()
    _declared: dict[tuple[int, ...], Method] = field(default_factory=dict)

    def of(self, tensor: str) -> Method:
        """The method as it merges this tensor."""
        matching = tuple(i for i, (pattern, _) in enumerate(self.overrides) if fnmatchcase(tensor, pattern))
        if not matching:
            return self.method
        if matching not in self._declared:
            changed: dict[str, Any] = self.method.model_dump(exclude_unset=True)
            for i in matching:
                changed |= self.overrides[i][1]
            self._declared[matching] = build(self.method.name, changed)
        return self._declared[matching]

    def problems(self, models: Sequence[str], tensors: Sequence[str]) -> list[str]:
        """What is wrong with the parameters for these models and tensors."""
        problems = self.method.problems(models)
        for pattern, changed in self.overrides:
            if not any(fnmatchcase(name, pattern) for name in tensors):
                problems.append(f"tensors {pattern!r}: no tensor that is merged has such a name")
            fixed = [name for name in changed if name not in self.method.per_tensor]
            problems += [f"tensors {pattern!r}: {name} holds for the whole model" for name in fixed]
        return problems
