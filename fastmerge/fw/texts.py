"""Batches of texts for a Hugging Face model, from JSONL files of unknown origin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, nearest
from ..formats.safetensors import limited
from ..runtime.jsonl import read_jsonl
from .recipe import Loss

FORMS = {
    "causal_lm": 'expected {"text": "…"}',
    "entropy": 'expected {"text": "…"}',
    "cross_entropy": 'expected {"text": "…", "label": "…"}',
}
Sample = tuple[str, int | None]


def read_samples(file: Path, loss: Loss, labels: Mapping[str, int]) -> list[Sample]:
    """Texts, and for "cross_entropy" their classes: a label's name, or its number among the model's.

    Raises InputError with every problem of the file.
    """

    def sample(content: dict[str, Any]) -> Sample | str:
        if not isinstance(content.get("text"), str):
            return "has no text"
        if loss != "cross_entropy":
            return content["text"], None
        label = content.get("label")
        number = labels.get(label) if isinstance(label, str) else label
        if isinstance(label, bool) or not isinstance(number, int) or number not in labels.values():
            near = nearest(label, labels) if isinstance(label, str) else ""
            return f"its label {label!r} is none of the model's{near}; those are {', '.join(labels)}"
        return content["text"], number

    return [found for _, found in read_jsonl(file, FORMS[loss], sample)]


def batches(
    file: Path, samples: Sequence[Sample], tokenizer: Any, batch_size: int, max_length: int
) -> list[dict[str, Tensor]]:
    """Tokens in batches, as they follow one another in the file, padded to the longest of each; labels with them."""
    found = []
    for start in range(0, len(samples), batch_size):
        texts, classes = zip(*samples[start : start + batch_size], strict=True)
        tokens = tokenizer(list(texts), padding=True, truncation=True, max_length=max_length, return_tensors="pt")
        labels = {} if classes[0] is None else {"labels": torch.tensor(classes)}
        found.append(dict(tokens) | labels)
    empty = [i for i, batch in enumerate(found) if not batch["input_ids"].numel()]
    if empty:
        raise InputError(limited(empty, lambda i: f"{file}: batch {i} has texts without a token"))
    return found
