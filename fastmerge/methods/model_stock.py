"""Model Stock (Jang et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from ..targets import matrices
from ._declaration import Subject
from ._products import Groups
from ._spanned import SpannedMethod

if TYPE_CHECKING:
    from torch import Tensor

SINGULAR = 1e-6


class ModelStock(SpannedMethod):
    """base + t · mean τ_k, t = K cos θ / (1 + (K − 1) cos θ), θ the angle between two task vectors.

    cos θ is the mean over all pairs of models, of whole tensors, or of every filter: the row of a matrix or a stack of
    matrices, all that the first index selects of a convolution. Where t has a pole (opposite task vectors) the result
    is base's. mergekit's lower bound of 1e-6 for the product of two norms, which makes small task vectors orthogonal,
    is not kept: an angle does not depend on lengths.
    """

    name = "model_stock"
    source = "Jang et al. 2024, arXiv 2403.19522, Eq. 5"
    counts = (2, 64)
    per_tensor = frozenset({"filter_wise"})

    filter_wise: bool = Field(default=False, description="an angle for every row of a matrix, not for the whole")

    def groups(self, subject: Subject) -> Groups | None:
        if not self.filter_wise or len(subject.shape) < 2:
            return None
        shape = matrices(subject.name, subject.shape)
        inner = shape[2] if shape else subject.columns
        return Groups(subject.numel // inner, inner)

    def coefficients(self, products: Tensor, models: Sequence[str]) -> Tensor:
        import torch

        count = len(models)
        norms = products.diagonal().T.sqrt()  # [K, groups]
        lengths = norms[:, None] * norms[None]
        cosines = torch.where(lengths > 0, products / lengths, products).clamp(-1, 1)
        above = torch.ones(count, count, dtype=torch.bool, device=products.device).triu(1)
        cosine = cosines[above].mean(0)
        divisor = 1 + (count - 1) * cosine
        t = torch.where(divisor.abs() < SINGULAR, 0, count * cosine / divisor)
        return (t / count).expand(count, -1)
