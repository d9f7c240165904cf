"""Features of texts, by the Hugging Face model of a folder of tasks. transformers is loaded when first needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, attempt
from ..formats.contents import open_contents
from ..formats.safetensors import limited
from ..forms import well_formed
from .features import mean_pooled
from .huggingface import load_transformers
from .load import find_device, load

VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.txt", "vocab.json")


@well_formed
def text_features(
    folder: str | Path,
    texts: Sequence[str],
    *,
    base: str | Path | None = None,
    device: str = "auto",
    batch: int = 16,
    max_length: int = 512,
) -> Tensor:
    """`mean_pooled` of texts by a folder's model without a task, float32 [N, D], as `RoutedModel` computes them.

    Texts are cut off at `max_length` tokens. device: as in `load`. Raises InputError where transformers cannot build
    the model or its tokenizer, and where a text has no token.
    """
    tokenizer, place = prepared(folder, base=base, device=device)
    parts = [list(texts[start : start + batch]) for start in range(0, len(texts), batch)]
    tokens = [
        tokenizer(part, padding=True, truncation=True, max_length=max_length, return_tensors="pt") for part in parts
    ]
    lengths = [length for ids in tokens for length in ids["attention_mask"].sum(1).tolist()]
    problems = limited([i for i, length in enumerate(lengths) if not length], lambda i: f"text {i}: is without a token")
    if problems or not texts:
        raise InputError(problems or "there are no texts")
    model, found = load(folder, base=base, device=place).eval(), []
    for ids in tokens:
        own = ids.to(place)
        found.append(mean_pooled(model, own["input_ids"], own["attention_mask"]).cpu())
    return torch.cat(found)


def prepared(
    folder: str | Path, *, base: str | Path | None = None, device: str = "auto", **_: Any
) -> tuple[Any, torch.device]:
    """The tokenizer and the device for texts; InputError where something is wrong with either, before the model is
    loaded."""
    load_transformers("pass features computed elsewhere (--features)")
    problems: list[str] = []
    source = attempt(problems, lambda: open_contents(Path(folder).expanduser(), base, "--base").source.path)
    tokenizer = None if source is None else attempt(problems, lambda: tokenizer_of(source))
    place = attempt(problems, lambda: find_device(device))
    if problems or place is None:
        raise InputError(problems)
    return tokenizer, place


def tokenizer_of(source: Path) -> Any:
    """The tokenizer of a model folder; without its files transformers would make one that knows no word.

    It can pad: where it has no token for it, with any, since padding is masked out.
    """
    if not any((source / name).is_file() for name in VOCABULARIES):
        raise InputError(f"{source}: has no tokenizer, which is one of {', '.join(VOCABULARIES)}; add its files")
    try:
        tokenizer = load_transformers("tokenize elsewhere").AutoTokenizer.from_pretrained(
            source, trust_remote_code=False
        )
    except Exception as error:  # whatever transformers makes of a stranger's folder
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{source}: transformers cannot load its tokenizer ({reason})") from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer
