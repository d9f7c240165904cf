"""Parts of the methods that keep some elements of each task vector: by magnitude, by chance, and by vote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from ._declaration import Block, NormalizedMethod, Pass, Statistics, Subject, exact, of_models, per_model, single
from ._modulators import TaskVectorMethod
from ._seeds import drop_threshold, philox_key

if TYPE_CHECKING:
    from torch import Tensor

    from ..ops import Kept

SLAB = 1 << 22  # elements whose masks are held at a time; a multiple of ops.BLOCK
MASKS = 1 << 28  # bytes of a tensor's masks that are kept until it is merged; those of more are drawn again


class SparseMethod(TaskVectorMethod):
    """A task-vector method that keeps the fraction `density` of each task vector."""

    per_tensor = TaskVectorMethod.per_tensor | {"density", "rescale"}
    by_model: ClassVar[tuple[str, ...]] = ("weights", "density")

    density: per_model(0, 1) = Field(default=0.2, description="fraction of each task vector that is kept")  # type: ignore[valid-type]
    rescale: Literal["none", "l1"] = Field(
        default="none", description="what is kept is brought to its L1 norm, or left"
    )

    def densities(self, models: Sequence[str]) -> list[Fraction]:
        """Each model's density, exactly as written."""
        return [exact(density) for density in of_models(self.density, models)]

    def kept(self, block: Block, models: Sequence[str], earlier: Sequence[Statistics]) -> Kept:
        """Which elements take part."""
        raise NotImplementedError

    @property
    def prepares(self) -> bool:
        return self.rescale == "l1"

    def prepare(self, block: Block, models: Sequence[str], earlier: Sequence[Statistics]) -> list[float]:
        """Per model the L1 norm before the drop over the one after, rounded to float32; 0 where all is dropped."""
        import torch

        from .. import ops

        assert block.base is not None
        sums = torch.zeros(2, len(models), dtype=torch.float64, device=block.base.device)
        slab = max(SLAB, -(-block.subject.columns // ops.BLOCK) * ops.BLOCK) if self.rows_whole else SLAB
        for start in range(0, block.subject.numel, slab):
            own = slice(start, start + slab)
            part = replace(block, start=start, base=block.base[own], models=[model[own] for model in block.models])
            ops.kept_sums(block.base[own], part.models, self.kept(part, models, earlier), offset=start, sums=sums)
        before, after = sums.tolist()
        return [single(b / a) if a else 0.0 for b, a in zip(before, after, strict=True)]

    def factors(self, block: Block, models: Sequence[str]) -> list[float] | None:
        """What each model's kept elements are multiplied by, where they are."""
        factors: list[float] | None = block.prepared if self.rescale == "l1" else None
        return factors

    def arguments(self, block: Block, models: Sequence[str], earlier: Sequence[Statistics]) -> dict[str, Any]:
        selection = {"kept": self.kept(block, models, earlier), "offset": block.start}
        return super().arguments(block, models, earlier) | selection | {"factors": self.factors(block, models)}


class TrimmedMethod(SparseMethod):
    """Keeps a window of each task vector's magnitudes: past the largest that `tops` counts, what `density` asks for."""

    @property
    def trims(self) -> bool:
        return True

    def tops(self, subject: Subject, models: Sequence[str]) -> list[int]:
        """Per model how many of the largest magnitudes are left out."""
        return [0 for _ in models]

    def ranks(self, subject: Subject, models: Sequence[str], earlier: Sequence[Statistics]) -> list[list[int]]:
        pairs = zip(self.tops(subject, models), self.densities(models), strict=True)
        return [[top, top + int(density * subject.numel)] for top, density in pairs]

    def kept(self, block: Block, models: Sequence[str], earlier: Sequence[Statistics]) -> Kept:
        from ..ops import Cut, Kept, Window

        def window(cuts: dict[int, Cut], top: int, bottom: int) -> Window:
            nothing = Cut(float("inf"), 0)
            if bottom == block.subject.numel:
                return Window(cuts[top] if top else None, None)
            return Window(cuts[top] if top else None, cuts[bottom] if bottom else nothing)

        return Kept(trim=[window(cuts, *own) for cuts, own in zip(block.cuts, block.ranks, strict=True)])


@dataclass(frozen=True, slots=True)
class Drawn:
    """What the drop from a whole tensor needs or came to: a table a model, where the method has some; packed masks,
    where they are kept, and each model's factor."""

    tables: list[Tensor]
    masks: Tensor | None = None
    factors: list[float] = field(default_factory=list)


class RandomMethod(SparseMethod):
    """Drops elements by chance, and scales the rest up."""

    density: per_model(0, 1) = Field(default=0.5, description="fraction of each task vector that is kept, on average")  # type: ignore[valid-type]
    seed: int = Field(default=0, description="of the random numbers; one seed drops the same elements everywhere")
    rescale: Literal["density", "l1", "none"] = Field(  # type: ignore[assignment]
        default="density", description="what is kept is divided by density, brought to its L1 norm, or left"
    )

    def keys(self, subject: Subject, models: Sequence[str]) -> list[int]:
        """Each model's key for this tensor's random numbers."""
        return [philox_key(self.seed, self.name, subject.name, model) for model in models]

    def tables(self, block: Block, models: Sequence[str]) -> list[Tensor]:
        """What `masks` looks up for each model, of a whole tensor."""
        return []

    def masks(self, block: Block, models: Sequence[str]) -> Tensor:
        """What is kept of a block, packed: uint8 [K, ceil(N/8)]."""
        raise NotImplementedError

    def drawn(self, block: Block, models: Sequence[str]) -> Kept:
        """What is kept of a block, told by chance alone."""
        raise NotImplementedError

    def passes_on(self, subject: Subject, models: Sequence[str], wide: bool = False) -> tuple[Pass, ...]:
        held = self._masks_bytes(subject, models) if self.rescale == "l1" else 0
        return tuple(replace(one, held=one.held + held) for one in super().passes_on(subject, models, wide))

    def _masks_bytes(self, subject: Subject, models: Sequence[str]) -> int:
        """What keeping a tensor's masks takes; 0 where they are not kept."""
        nbytes = len(models) * -(-subject.numel // 8)
        return nbytes if nbytes <= MASKS else 0

    def prepare(self, block: Block, models: Sequence[str], earlier: Sequence[Statistics]) -> Drawn:  # type: ignore[override]
        drawn = Drawn(self.tables(block, models))
        if self.rescale == "l1":
            if self._masks_bytes(block.subject, models):
                drawn = replace(drawn, masks=self.masks(replace(block, prepared=drawn), models))
            factors = super().prepare(replace(block, prepared=drawn), models, earlier)
            drawn = replace(drawn, factors=factors)
        return drawn

    def kept(self, block: Block, models: Sequence[str], earlier: Sequence[Statistics]) -> Kept:
        from ..ops import Kept

        if block.prepared is None or block.prepared.masks is None:
            return self.drawn(block, models)
        stop = block.start + block.models[0].numel()
        return Kept(keep=block.prepared.masks[:, block.start // 8 : -(-stop // 8)])

    def factors(self, block: Block, models: Sequence[str]) -> list[float] | None:
        if self.rescale == "l1":
            return [*block.prepared.factors]
        if self.rescale == "none":
            return None
        return [float(1 / density) if density else 0.0 for density in self.densities(models)]


class DroppingMethod(RandomMethod):
    """Drops every element with the same probability (DARE)."""

    def thresholds(self, models: Sequence[str]) -> list[int]:
        """Per model the Philox word below which an element is dropped."""
        return [drop_threshold(1 - density) for density in self.densities(models)]

    def masks(self, block: Block, models: Sequence[str]) -> Tensor:
        import torch

        from .. import ops

        assert block.base is not None
        columns = 1  # an element is a row, and has one rank
        table = [torch.tensor([threshold], device=block.base.device) for threshold in self.thresholds(models)]
        return ops.rank_drop(block.base, block.models, columns, self.keys(block.subject, models), table)

    def drawn(self, block: Block, models: Sequence[str]) -> Kept:
        from ..ops import Drop, Kept

        keys = self.keys(block.subject, models)
        return Kept(drop=[Drop(*own) for own in zip(keys, self.thresholds(models), strict=True)])


class NormalizedSparseMethod(SparseMethod, NormalizedMethod):
    """Sums what is kept, and may divide by the sum of the weights."""

    def arguments(self, block: Block, models: Sequence[str], earlier: Sequence[Statistics]) -> dict[str, Any]:
        return super().arguments(block, models, earlier) | {"normalize": self.normalize}


class VotingMethod(TaskVectorMethod):
    """Elects a sign by element and merges what agrees with it (TIES-Merging)."""

    vote: Literal["weighted", "unweighted", "count"] = Field(
        default="weighted", description="the sign of Σ w_k τ_k, of Σ τ_k (kept, but not rescaled), or of most models"
    )
    merge: Literal["sum", "mean", "weighted_mean"] = Field(
        default="sum", description="what agrees is summed, or divided by its number or weights"
    )

    def arguments(self, block: Block, models: Sequence[str], earlier: Sequence[Statistics]) -> dict[str, Any]:
        return super().arguments(block, models, earlier) | {"consensus": self.vote, "merge": self.merge}
