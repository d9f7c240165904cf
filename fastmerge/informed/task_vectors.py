"""Task vectors of a pool, never made whole: added to θ_0 with coefficients, and multiplied with a gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from .. import ops
from ..engine.stream import Work
from ..errors import InputError
from ..fw.candidates import Candidates, Scores, Use
from ..methods._declaration import Block, Pass, Statistics, Subject
from ..methods._quantiles import local_ranks, passes
from ..ops.memory import widened


class TaskVectors:
    """τ_k = θ_k − θ_0 of K candidates, θ_0 being the first of them."""

    def __init__(self, candidates: Candidates) -> None:
        self.candidates = candidates
        self.count = len(candidates.names) - 1

    def adding(self, slot: str, weights: Sequence[float], out: Tensor, bad: list[str]) -> Work:
        """Make θ_0 + Σ_k w_k · τ_k of one tensor, in a flat one; its name joins `bad` where that is not finite."""

        def add(start: int, chunks: list[Tensor], _: list[Tensor]) -> None:
            part = out[start : start + chunks[0].numel()]
            base, *models = (chunk.to(out.device) for chunk in chunks)
            if self._add(slot, start, base, models, weights, part) and slot not in bad:
                bad.append(slot)

        return self.candidates.work(slot, range(self.count + 1), add)

    def dots(self, gradient: Mapping[str, Tensor], when: str) -> Tensor:
        """⟨g, τ_k⟩ by tensor, float64 [T, K], in one sweep; MergeError where a factor is not finite."""
        every = dict.fromkeys(self.candidates.slots, range(self.count + 1))
        scores = self.candidates.scores(gradient, every)
        self.candidates.check(scores, when)
        return scores.dots[:, 1:] - scores.dots[:, :1]

    def _add(
        self, slot: str, start: int, base: Tensor, models: list[Tensor], weights: Sequence[float], out: Tensor
    ) -> int:
        """θ_0 + Σ_k w_k · τ_k, the sum in the order of k, 64 at a time; how many elements are not finite."""
        if self.count <= ops.MAX_MODELS:
            return ops.combine(base, models, weights, out=out).nonfinite
        wide = ops.working_dtype([base, *models])
        groups = [slice(i, i + ops.MAX_MODELS) for i in range(0, self.count, ops.MAX_MODELS)]
        sums = [ops.combine(base, models[g], weights[g], as_delta=True, dtype=wide).merged for g in groups]
        return ops.combine(None, [base, ops.combine(None, sums).merged], out=out).nonfinite


class ElectedTaskVectors(TaskVectors):
    """Task vectors as AdaMerging++ takes them: of each the fraction `density` of largest magnitudes, over all tensors
    together, and of these what has the sign of their sum (zero: +). At most 64."""

    def __init__(self, candidates: Candidates, density: float) -> None:
        super().__init__(candidates)
        if self.count > ops.MAX_MODELS:
            raise InputError(f"plus_plus: takes {ops.MAX_MODELS} members of a pool at most, there are {self.count}")
        self._windows = self._trim(Fraction(str(density)))

    def dots(self, gradient: Mapping[str, Tensor], when: str) -> Tensor:
        slots = list(self.candidates.slots)
        products = torch.zeros((len(slots), 2 * self.count + 1), dtype=torch.float64)
        works = []
        for row, slot in enumerate(slots):
            if slot in gradient:
                works.append(
                    self.candidates.work(
                        slot, range(self.count + 1), self._scoring(slot, gradient[slot], products[row])
                    )
                )
        self.candidates.sweep(works)
        dots, norms, own = products[:, : self.count], products[:, self.count : -1], products[:, -1]
        ahead = torch.zeros((len(slots), 1), dtype=torch.float64)  # θ_0 has no task vector
        self.candidates.check(Scores(dots, torch.cat([ahead, norms], 1), own), when)
        return dots

    def _add(
        self, slot: str, start: int, base: Tensor, models: list[Tensor], weights: Sequence[float], out: Tensor
    ) -> int:
        trim = ops.Kept(trim=self._windows[slot])
        return ops.combine(base, models, weights, consensus="unweighted", kept=trim, offset=start, out=out).nonfinite

    def _scoring(self, slot: str, g: Tensor, sums: Tensor) -> Use:
        windows = self._windows[slot]

        def score(start: int, chunks: list[Tensor], _: list[Tensor]) -> None:
            base, *models = (chunk.to(g.device) for chunk in chunks)
            wide, base = ops.working_dtype(chunks), widened(base, models)
            elected = ops.combine(
                base,
                models,
                consensus="unweighted",
                kept=ops.Kept(trim=windows),
                offset=start,
                as_delta=True,
                dtype=wide,
            ).merged
            masks = ops.mask_against(base, models, elected).masks
            own = [
                ops.combine(
                    base,
                    [model],
                    kept=ops.Kept(trim=[windows[k]], keep=masks[k : k + 1]),
                    offset=start,
                    as_delta=True,
                    dtype=wide,
                ).merged
                for k, model in enumerate(models)
            ]
            found = ops.inner_products(g[start : start + base.numel()], own)
            sums.add_(torch.cat([found.dots, found.norms, found.gradient_norm.view(1)]).cpu())

        return score

    def _trim(self, density: Fraction) -> dict[str, list[ops.Window]]:
        """By tensor, of each task vector the magnitudes that are kept; found in a few sweeps."""
        candidates, densities = self.candidates, [density] * self.count
        subjects = {name: Subject(name, slot.shape) for name, slot in candidates.slots.items()}
        wide = any(candidates.whole(name, k).dtype == torch.float64 for name in subjects for k in range(self.count + 1))
        earlier: list[Statistics] = []
        for one in passes(densities, wide):
            gathered = Statistics(self.count, {name: subject.numel for name, subject in subjects.items()})
            works = []
            for name, subject in subjects.items():
                gathered.sums[name] = torch.zeros((one.rows, self.count), dtype=torch.float64)
                count = _counting(one, subject, gathered.sums[name], earlier)
                works.append(candidates.work(name, range(self.count + 1), count))
            candidates.sweep(works)
            earlier.append(gathered)
        return {name: self._windows_of(name, local_ranks(name, densities, earlier)) for name in subjects}

    def _windows_of(self, name: str, ranks: list[int]) -> list[ops.Window]:
        base, *models = (self.candidates.whole(name, k).cpu() for k in range(self.count + 1))
        if not base.numel():
            return [ops.Window() for _ in ranks]
        cuts = ops.kth_magnitude(base, models, [[rank] for rank in ranks])
        return [
            ops.Window(None, None if rank == base.numel() else cut) for rank, (cut,) in zip(ranks, cuts, strict=True)
        ]


def _counting(one: Pass, subject: Subject, sums: Tensor, earlier: Sequence[Statistics]) -> Use:
    def count(start: int, chunks: list[Tensor], _: list[Tensor]) -> None:
        base, *models = (chunk.cpu() for chunk in chunks)
        one.run(Block(subject, models, base, start, sums=sums), earlier)

    return count
