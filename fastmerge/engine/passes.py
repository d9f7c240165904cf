"""A pass over one tensor, for every output that the same reading makes. Streamed and in-memory merges share it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..batching import Result, waiting
from ..methods._declaration import Block, Pass, Statistics, Subject, Written
from ..ops import Cut, Expert, LowRank
from ..ops.memory import scratch, zeros
from .statistics import Kept

Whole = tuple[Tensor | None, list[Tensor]]


@dataclass(slots=True)
class Share:
    """One output's part in the reading of a tensor: its pass, what passes before found, and what this one finds.

    `replaced`: what its pass works on in the place of base and models, where it has them filtered.
    """

    one: Pass
    earlier: Sequence[Statistics]
    sums: Tensor
    nonfinite: int = 0
    later: list[Result] = field(default_factory=list)  # numbers of more bad results
    ranks: list[list[int]] = field(default_factory=list)
    cuts: list[dict[int, Cut]] = field(default_factory=list)
    prepared: Any = None
    experts: list[Expert | LowRank] = field(default_factory=list)
    replaced: tuple[Tensor, list[Tensor]] | None = None

    def settle(self) -> None:
        """Wait for what was found, and have it on the host."""
        self.sums = self.sums.cpu()
        self.nonfinite += sum(result() for result in self.later)
        self.later = []


@dataclass(slots=True)
class TensorPass:
    """The pass of every output over one tensor. Call `prepare` if `needs_whole`, `run` for its blocks in order, then
    ask `acceptable` and call `gather`."""

    subject: Subject
    models: int
    shares: list[Share]
    kept: Kept
    whole: Whole | None = None

    @classmethod
    def of(
        cls,
        subject: Subject,
        models: int,
        passes: Sequence[Pass],
        earlier: Sequence[Sequence[Statistics]],
        kept: Kept,
        device: torch.device | None = None,
    ) -> TensorPass:
        """`passes` and `earlier` are each output's."""
        shares = [
            Share(one, before, torch.zeros(one.rows, models, dtype=torch.float64, device=device))
            for one, before in zip(passes, earlier, strict=True)
        ]
        return cls(subject, models, shares, kept)

    def begin(self, device: torch.device) -> None:
        """Forget what was found so far, and sum up on a device."""
        self.release()
        for share in self.shares:
            share.sums = torch.zeros_like(share.sums, device=device)
            share.nonfinite, share.later = 0, []

    def release(self) -> None:
        """Let go of the tensor, and of what was prepared of it."""
        self.whole = None
        for share in self.shares:
            share.prepared, share.replaced, share.experts = None, None, []

    @property
    def needs_whole(self) -> bool:
        return self.subject.numel > 0 and any(share.one.needs_whole for share in self.shares)

    def prepare(self, base: Tensor | None, models: list[Tensor]) -> None:
        """Look at the whole tensor, 1-D: the cuts that any output needs, found together, then what each prepares."""
        self.whole = base, models
        for share in self.shares:
            if share.one.prefilter is not None:
                deltas = share.one.prefilter(self._block(share, 0, base, models))
                share.replaced = zeros(deltas[0], deltas[0].dtype), deltas
        plain = [share for share in self.shares if share.replaced is None]
        self._cut(plain, base, models, self.kept)
        for share in self.shares:
            if share.replaced is not None:
                self._cut([share], *share.replaced, Kept())
        for share in self.shares:
            if share.one.prepare is not None:
                block = self._block(share, 0, base, models)
                share.prepared = share.one.prepare(block, share.earlier)
                share.experts = block.experts
                share.nonfinite += block.nonfinite

    def _cut(self, shares: Sequence[Share], base: Tensor | None, models: list[Tensor], kept: Kept) -> None:
        """Find the cuts that these outputs need of the same task vectors."""
        trivial, wanted = {0, self.subject.numel}, [set[int]() for _ in range(self.models)]
        for share in shares:
            if share.one.ranks is not None:
                share.ranks = share.one.ranks(self.subject, share.earlier)
                wanted = [all_ranks | {*own} - trivial for all_ranks, own in zip(wanted, share.ranks, strict=True)]
        cuts: list[dict[int, Cut]] = [{} for _ in wanted]
        if any(wanted):
            assert base is not None
            cuts = kept.cuts(self.subject.name, base, models, [sorted(ranks) for ranks in wanted])
        for share in shares:
            share.cuts = cuts

    def run(
        self,
        start: int,
        base: Tensor | None,
        models: list[Tensor],
        targets: Sequence[Mapping[Written, Tensor]],
    ) -> None:
        """Work on the elements from `start` on; `targets` are each output's memory for what its pass writes."""
        if not self.subject.numel:
            return
        for share, memory in zip(self.shares, targets, strict=True):
            with waiting(share.later.append) if share.one.together else nullcontext():
                self._run(share, start, base, models, memory)

    def _run(
        self, share: Share, start: int, base: Tensor | None, models: list[Tensor], memory: Mapping[Written, Tensor]
    ) -> None:
        block = self._block(share, start, base, models)
        for kind, tensor in memory.items():
            setattr(block, kind, tensor)
        if share.replaced is not None and block.merged is not None:
            block.merged = scratch(block.models[0], block.models[0].dtype)
        share.one.run(block, share.earlier)
        if share.replaced is not None and block.merged is not None:
            assert base is not None
            block.nonfinite += ops.combine(None, [base, block.merged], out=memory["merged"]).nonfinite
        share.nonfinite += block.nonfinite

    def acceptable(self, allowed: Sequence[bool]) -> bool:
        """Whether no output has met NaN or infinity, but those it is `allowed` to."""
        for share in self.shares:
            share.settle()
        found = [bool(share.nonfinite) or not bool(share.sums.isfinite().all()) for share in self.shares]
        return all(not bad or allow for bad, allow in zip(found, allowed, strict=True))

    def gather(self, statistics: Sequence[Statistics]) -> list[Tensor]:
        """Add what was found to each output's statistics of the pass; returns each output's sums."""
        return self.restore([share.sums.cpu() for share in self.shares], statistics)

    def restore(self, sums: list[Tensor], statistics: Sequence[Statistics]) -> list[Tensor]:
        """What `gather` does, with sums that were found before."""
        self.release()
        for share, own, gathered in zip(self.shares, sums, statistics, strict=True):
            if share.one.idle:
                continue
            gathered.sizes[self.subject.name] = self.subject.numel
            gathered.sums[self.subject.name] = own = own.view(share.sums.shape)
            if share.one.statistic is not None:
                self.kept.put(share.one.statistic, self.subject.name, own)
        return sums

    def known(self) -> list[Tensor] | None:
        """Each output's sums, where all were kept of another merge of the same inputs."""
        known = [self._kept_sums(share) for share in self.shares]
        return [sums for sums in known if sums is not None] if None not in known else None

    def _kept_sums(self, share: Share) -> Tensor | None:
        if share.one.idle:
            return share.sums
        if share.one.statistic is None:
            return None
        return self.kept.get(share.one.statistic, self.subject.name, share.one.rows, self.models)

    def _block(self, share: Share, start: int, base: Tensor | None, models: list[Tensor]) -> Block:
        whole = self.whole
        if share.replaced is not None:
            whole, own = share.replaced, slice(start, start + models[0].numel())
            base, models = whole[0][own], [delta[own] for delta in whole[1]]
        return Block(
            self.subject,
            models,
            base,
            start=start,
            whole=whole,
            ranks=share.ranks,
            cuts=share.cuts,
            prepared=share.prepared,
            sums=share.sums,
        )
