"""Methods that merge matrices by singular vectors: the leading ones, and what is nearest to them and orthogonal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from ..targets import excluded, matches, matrices
from ._declaration import Block, Finite, Method, Pass, Statistics, Subject
from ._filter import Patterns

if TYPE_CHECKING:
    from torch import Tensor

HELD = 20  # copies of a matrix that its decompositions take, at most


class SingularMethod(Method):
    """base + scale · a task vector that each matrix has from its tasks together; other tensors get their mean."""

    per_tensor = frozenset({"scale"})

    scale: Finite = Field(default=1.0, description="α, the factor of the merged task vector")
    targets: Patterns | None = Field(
        default=None,
        description="patterns of matrices to decompose; all 2-D weights but embeddings and heads by default",
    )
    exclude: Patterns = Field(default=(), description="patterns of tensors not to decompose")

    def merge_matrix(self, base: Tensor, models: Sequence[Tensor], shape: tuple[int, int]) -> Tensor:
        """The merged task vector, [H, W]. base: H·W elements in the working type; models: as many each."""
        raise NotImplementedError

    def matrices(self, subject: Subject) -> tuple[int, int, int] | None:
        """The tensor as [B, H, W], B matrices to be decomposed; None where it is not."""
        wanted = not excluded(subject.name) if self.targets is None else matches(subject.name, self.targets)
        if not wanted or matches(subject.name, self.exclude) or not subject.numel:
            return None
        return matrices(subject.name, subject.shape)

    def passes(self, models: Sequence[str], wide: bool = False) -> tuple[Pass, ...]:
        return (Pass(self.merge, writes=("merged",), prepare=self.prepare),)

    def passes_on(self, subject: Subject, models: Sequence[str], wide: bool = False) -> tuple[Pass, ...]:
        shape = self.matrices(subject)
        if shape is None:
            return (Pass(self.merge, writes=("merged",)),)
        _, h, w = shape
        held = (subject.numel + HELD * h * w) * (8 if wide else 4)
        return (Pass(self.merge, writes=("merged",), prepare=self.prepare, held=held),)

    def prepare(self, block: Block, _: Sequence[Statistics]) -> Tensor | None:
        """The merged task vector of a tensor of matrices, whole."""
        import torch

        from ..ops.memory import widened

        shape = self.matrices(block.subject)
        if shape is None:
            return None
        assert block.base is not None
        count, h, w = shape
        merged = []
        for start in range(0, count * h * w, h * w):
            own = slice(start, start + h * w)
            base = widened(block.base[own], block.models)
            merged.append(self.merge_matrix(base, [model[own] for model in block.models], (h, w)).view(-1))
        return merged[0] if count == 1 else torch.cat(merged)

    def merge(self, block: Block, _: Sequence[Statistics]) -> None:
        from .. import ops

        assert block.base is not None
        if block.prepared is None:
            merged = ops.combine(block.base, block.models, normalize=True, scale=self.scale, out=block.merged)
        else:
            delta = block.prepared[block.start : block.start + block.base.numel()]
            merged = ops.combine(None, [block.base, delta], [1.0, self.scale], out=block.merged)
        block.nonfinite += merged.nonfinite


def leading(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """U [H, r], σ [r] and Vᵀ [r, W] of the `rank` largest singular values, as far as they are not zero.

    Of a matrix that is not finite they are NaN.
    """
    import torch

    h, w = matrix.shape
    if not bool(matrix.isfinite().all()):
        return matrix.new_full((h, 1), torch.nan), matrix.new_zeros(1), matrix.new_zeros(1, w)
    rounding = torch.finfo(matrix.dtype).eps * max(h, w)  # of the largest singular value
    if matrix.dtype == torch.float64:
        u, sigma, v = torch.linalg.svd(matrix, full_matrices=False)
        kept = min(rank, int((sigma > rounding * sigma[:1]).sum()))
        return u[:, :kept].contiguous(), sigma[:kept].clone(), v[:kept].contiguous()
    if h > w:
        v, sigma, u = leading(matrix.T, rank)
        return u.T.contiguous(), sigma, v.T.contiguous()
    # In float64 eigenvectors of A Aᵀ are better singular vectors than float32 has of A, and take less time.
    values, vectors = torch.linalg.eigh(_squared(matrix))
    sigma = values.flip(0).clamp_min(0).sqrt()
    kept = min(rank, int((sigma > rounding * sigma[:1]).sum()))
    sigma, u = sigma[:kept], vectors[:, len(vectors) - kept :].flip(1)
    del vectors
    v = (u.T @ matrix.double()).div_(sigma[:, None])
    return u.to(matrix.dtype), sigma.to(matrix.dtype), v.to(matrix.dtype)


def _squared(matrix: Tensor) -> Tensor:
    """A Aᵀ in float64."""
    wide = matrix.double()
    return wide @ wide.T


def side_by_side(parts: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Left vectors, singular values and right vectors of all parts, vectors made orthogonal; empties the list."""
    import torch

    left, sigma, right = (torch.cat(own, -1) for own in zip(*((u, s, v.T) for u, s, v in parts), strict=True))
    parts.clear()
    return orthogonal(left), sigma, orthogonal(right)


def orthogonal(columns: Tensor) -> Tensor:
    """The polar factor: orthonormal columns nearest to these, as far as they are linearly independent."""
    if not columns.numel() or not bool(columns.isfinite().all()):
        return columns
    u, _, v = leading(columns, min(columns.shape))
    return u @ v
