"""Opening what is merged: models, and adapters as the models that they make of base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..errors import InputError, attempt
from .adapter import expand, structure_problems
from .checkpoint import ADAPTER_CONFIG, Checkpoint, open_checkpoint
from .safetensors import DTYPES
from .spec import ModelSpec, parse_spec

CODES = {dtype for dtype in DTYPES if dtype[0] in "UI" or dtype.startswith("F8")}  # of quantised weights
Location = str | Path | Checkpoint  # MODEL, MODEL+ADAPTER, or what is open already
Model = tuple[str, Location]  # with its label


def open_model(text: Location, label: str, *, fetch: bool = True) -> Checkpoint:
    """Open MODEL, or MODEL+ADAPTER as the model that the adapter makes of it; an ADAPTER alone stays one."""
    if isinstance(text, Checkpoint):
        return text
    opened = _opened(text, label, fetch)
    described = opened.config.get("quantization_config")
    if described and any(len(own.shape) > 1 and own.dtype in CODES for own in opened.tensors.values()):
        method = described.get("quant_method", "by its config.json") if isinstance(described, dict) else described
        raise InputError(
            f"{label}: {text} is quantised ({method}), and codes cannot be merged; give the model that it was made of, "
            "or dequantise it first"
        )
    return opened


def _opened(text: str | Path, label: str, fetch: bool) -> Checkpoint:
    spec = parse_spec(text)
    if spec.adapter is None:
        return open_checkpoint(spec.model, label, fetch=fetch)
    problems: list[str] = []
    base = attempt(problems, lambda: open_checkpoint(spec.model, label, fetch=fetch))
    adapter = attempt(problems, lambda: open_checkpoint(str(spec.adapter), label, fetch=fetch))
    if base is not None and base.adapter is not None:
        problems.append(f"{label}: {spec.model} is an adapter itself; expected MODEL+ADAPTER")
    if adapter is not None and adapter.adapter is None:
        problems.append(f"{label}: {spec.adapter} is no adapter, it has no {ADAPTER_CONFIG}; expected MODEL+ADAPTER")
    if problems or base is None or adapter is None:
        raise InputError(problems)
    expanded = expand(base, adapter)
    return replace(
        expanded,
        path=Path(f"{base.path}+{adapter.path}"),
        place=str(ModelSpec(base.place, adapter.place)),
        headers=(*base.headers, *adapter.headers),
        notes=(*base.notes, *expanded.notes),
        missing=(*base.missing, *adapter.missing),
    )


def open_models(
    base: Location | None, models: Sequence[Model], problems: list[str], *, fetch: bool = True
) -> tuple[Checkpoint | None, list[Checkpoint | None]]:
    """Open base and models; what is wrong joins `problems`, and is None.

    Adapters are expanded against base. Where base is an adapter too, or where there is none and all are adapters, they
    stay what they are, to be merged tensor by tensor.
    """
    lead = None if base is None else attempt(problems, partial(open_model, base, "base", fetch=fetch))
    opened = [attempt(problems, partial(open_model, path, label, fetch=fetch)) for label, path in models]
    found = [model for model in opened if model is not None]
    adapters = [model for model in found if model.adapter is not None]
    if base is not None and (lead is None or lead.adapter is None):
        return lead, [_on(lead, model, problems) for model in opened]
    if adapters and len(adapters) < len(found):
        problems += [
            f"{model.label}: {model.path} is an adapter, and others are not; pass --base, or write MODEL+ADAPTER"
            for model in adapters
        ]
    elif lead is not None and found and not adapters:
        problems.append(f"base: {lead.path} is an adapter, the models are not")
    elif adapters:
        problems += structure_problems([*([lead] if lead else []), *adapters])
    return lead, opened


def _on(base: Checkpoint | None, model: Checkpoint | None, problems: list[str]) -> Checkpoint | None:
    """The model that an adapter makes of base; a model as it is."""
    if base is None or model is None:
        return model
    if model.adapter is not None:
        return attempt(problems, lambda: expand(base, model))
    if any(".lora_" in name for name in model.tensors) and not any(".lora_" in name for name in base.tensors):
        problems.append(
            f"{model.label}: {model.path} holds an adapter's matrices without an {ADAPTER_CONFIG}, which has their "
            "scale; give the folder that peft's save_pretrained() wrote"
        )
        return None
    return model
