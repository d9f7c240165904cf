"""PEFT's adapters: adapter_config.json and adapter_model.safetensors, and the model that one makes of its base.

LoRA (Hu et al. 2021, arXiv 2106.09685), also rank-stabilised (Kalajdzievski 2023, arXiv 2312.03732), and (IA)³ (Liu et
al. 2022, arXiv 2205.05638). An adapter's tensors are named after modules of base:

    base_model.model.MODULE.lora_A.weight  [r, in]            .lora_B.weight  [out, r]       .lora_B.bias  [out]
    base_model.model.MODULE.lora_embedding_A  [r, rows]       .lora_embedding_B  [width, r]
    base_model.model.MODULE.ia3_l  [out, 1], or [1, in] of a feedforward module
    base_model.model.NAME          in the place of base's tensor NAME: biases, modules_to_save
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..errors import InputError, nearest
from .checkpoint import Checkpoint
from .expanded import Expanded, LowRank, Rescaled
from .safetensors import FLOATS, TensorInfo, limited

PART = re.compile(r"(.+)\.(lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_A|lora_embedding_B|ia3_l)")
# What a LoRA configuration may ask for that no product of two matrices gives.
REFUSED = {
    "use_dora": "DoRA divides by norms of whole columns of the merged weight",
    "use_qalora": "QALoRA pools its inputs",
    "use_bdlora": "block-diagonal LoRA has other shapes",
    "alora_invocation_tokens": "an activated LoRA changes some tokens alone",
    "trainable_token_indices": "single tokens of the embedding were trained",
    "target_parameters": "it changes parameters that belong to no module of their own, such as experts",
    "layer_replication": "it repeats layers of base",
    "arrow_config": "it chooses between other adapters by the input",
    "kasa_config": "KaSA changes base first",
    "megatron_config": "it is for a model divided among devices",
}
CHANGE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # what these begin with is taken off base
TRANSPOSED = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")  # model types whose layers are Conv1D
CONV1D = re.compile(r"(.*\.)?(c_attn|c_proj|c_fc|q_attn)")
SAME = ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out")

Tensors = Mapping[str, TensorInfo]


def expand(base: Checkpoint, adapter: Checkpoint) -> Checkpoint:
    """The model that an adapter makes of base, which reads from the files of both; base's tensors where it has no part.

    Its headers are the adapter's alone. Raises InputError with everything that does not fit.
    """
    config = adapter.adapter or {}
    problems = refusals(config)
    if problems:
        raise InputError(f"{adapter.label}: {adapter.path}: {problem}" for problem in problems)
    parts, whole = _sorted(adapter.tensors)
    notes = list(adapter.notes)
    renamed = _prefix(base.tensors, parts)
    if renamed is not None:
        old, new = renamed
        parts = {_exchanged(name, old, new): own for name, own in parts.items()}
        whole = {_exchanged(name, old, new): own for name, own in whole.items()}
        notes.append(f"{adapter.label}: its modules are {base.label}'s with {old!r} for {new!r}")
    # An adapter of embeddings stores these whole too: it is theirs that its matrices change.
    tensors = base.tensors | {name: replace(info, name=name) for name, info in whole.items()}
    changed: dict[str, TensorInfo] = {}
    for module, own in parts.items():
        found = _Module(replace(base, tensors=tensors), config, module, own)
        problems += found.problems
        changed |= found.changed
    if problems:
        raise InputError(f"{adapter.label}: {problem}" for problem in limited(problems))
    given = config.get("base_model_name_or_path")
    if given and str(given) not in (str(base.path), base.place, base.place.partition("@")[0]):
        notes.append(f"{adapter.label}: was trained on {given}, and is expanded against {base.place}")
    return replace(adapter, tensors=tensors | changed, config=base.config, notes=tuple(notes), adapter=None)


def refusals(config: Mapping[str, Any]) -> list[str]:
    """Why an adapter is not a sum that a weight can be expanded to."""
    kind = str(config.get("peft_type"))
    if kind not in ("LORA", "IA3"):
        return [f"is an adapter of type {kind}; LORA and IA3 can be expanded. {MERGE_IT}"]
    reasons = [reason for key, reason in REFUSED.items() if config.get(key)]
    begun = config.get("init_lora_weights")
    if isinstance(begun, str) and begun.lower().startswith(CHANGE_BASE):
        way = "save_pretrained(…, path_initial_model_for_weight_conversion=…)"
        return [f"began as {begun}, which changed base's weights; save it by peft's {way}, which makes it a plain LoRA"]
    return [f"{reason}; it cannot be expanded. {MERGE_IT}" for reason in reasons]


MERGE_IT = "Merge it in peft (merge_and_unload), and give the model"


def structure_problems(adapters: Sequence[Checkpoint]) -> list[str]:
    """Why adapters cannot be merged tensor by tensor: their products would not have one scale."""
    first, *others = ((adapter.label, adapter.adapter or {}) for adapter in adapters)
    return [
        f"{label}: its {key} is {config.get(key)}, {first[0]}'s {first[1].get(key)}: adapters are merged tensor by "
        "tensor where all are made alike; give base, to merge the models that they make"
        for label, config in others
        for key in SAME
        if config.get(key) != first[1].get(key)
    ]


def _sorted(tensors: Tensors) -> tuple[dict[str, dict[str, TensorInfo]], dict[str, TensorInfo]]:
    """An adapter's tensors: by module and part, and those that stand in the place of base's."""
    parts: dict[str, dict[str, TensorInfo]] = {}
    whole: dict[str, TensorInfo] = {}
    for info in tensors.values():
        name = info.name.removeprefix("base_model.model.")
        name = name.replace(".modules_to_save.", ".").replace(".base_layer.", ".")
        match = PART.fullmatch(name)
        if match:
            parts.setdefault(match[1], {})[match[2].removesuffix(".weight")] = info
        else:
            whole[name] = info
    return parts, whole


def _prefix(base: Tensors, modules: Iterable[str]) -> tuple[str, str] | None:
    """(old, new) prefixes of module names after whose exchange all are base's; None where they are, or none helps."""
    weights = [f"{module}.weight" for module in modules]
    if not weights or any(name in base for name in weights):
        return None
    first = weights[0]
    pairs = [("", name.removesuffix(first)) for name in base if name.endswith(f".{first}")]
    pairs += [(first.removesuffix(name), "") for name in base if first.endswith(f".{name}")]
    return next(
        (p for p in pairs if all(w.startswith(p[0]) and _exchanged(w, *p) in base for w in weights)),
        None,
    )


def _exchanged(name: str, old: str, new: str) -> str:
    return new + name.removeprefix(old) if name.startswith(old) else name


class _Module:
    """A module's part of an adapter: base's tensors as it has them `changed`, and what is wrong."""

    def __init__(self, base: Checkpoint, config: Mapping[str, Any], module: str, parts: Tensors) -> None:
        self.changed: dict[str, TensorInfo] = {}
        self.problems: list[str] = []
        self._base, self._config, self._module, self._parts = base, config, module, parts
        name = f"{module}.weight"
        weight = base.tensors.get(name)
        if weight is None:
            modules = [n.removesuffix(".weight") for n in base.tensors]
            hint = nearest(module, modules) if len(modules) < 5000 else ""
            self.problems.append(f"changes the module {module!r}, which {base.label} does not store{hint}")
        elif weight.dtype not in FLOATS:
            self.problems.append(f"changes {name!r}, which is {weight.dtype} in {base.label}; save base as floats")
        elif "ia3_l" in parts:
            self._rescale(weight, parts["ia3_l"])
        else:
            self._add(weight)
        wrong = [info for info in parts.values() if info.dtype not in FLOATS]
        self.problems += [f"tensor {info.name!r} is {info.dtype}; expected a float dtype" for info in wrong]

    def _add(self, weight: TensorInfo) -> None:
        """The weight, and the bias, with what LoRA adds."""
        parts = self._parts
        embedding = "lora_embedding_A" in parts or "lora_embedding_B" in parts
        a, b = (parts.get(f"lora_embedding_{x}" if embedding else f"lora_{x}") for x in "AB")
        if a is None or b is None:
            lacks = "A" if a is None else "B"
            self.problems.append(f"lacks the matrix {lacks} of {self._module!r}; save the adapter again")
            return
        a_shape, b_shape = _matrix(a), _matrix(b)
        rows, rest = _matrix(weight)
        rank, scale = self._scale()
        if len(a.shape) < 2 or len(b.shape) < 2 or a_shape[0] != b_shape[1] or not a_shape[0]:
            self.problems.append(f"{self._module!r}: its A {list(a.shape)} and B {list(b.shape)} are no product")
        elif rank != a_shape[0]:
            self.problems.append(f"{self._module!r}: its rank is {a_shape[0]}, the configuration says {rank}")
        elif self._transposed((b_shape[0], a_shape[1]), (rows, rest), embedding):
            self.changed[weight.name] = Expanded.of(weight, LowRank(a, b, scale, transposed=True))
        elif (b_shape[0], a_shape[1]) == (rows, rest):
            self.changed[weight.name] = Expanded.of(weight, LowRank(b, a, scale))
        else:
            self.problems.append(
                f"{self._module!r}: its product is [{b_shape[0]}, {a_shape[1]}], {weight.name!r} of {self._base.label} "
                f"is {list(weight.shape)}; is this the base that it was trained on?"
            )
        if (added := parts.get("lora_B.bias")) is not None:
            bias = self._base.tensors.get(f"{self._module}.bias")
            if bias is None or bias.shape != added.shape:
                self.problems.append(f"{self._module!r}: has a bias {list(added.shape)} that base has none for")
            else:
                self.changed[bias.name] = Expanded.of(bias, LowRank(added, None, scale))

    def _rescale(self, weight: TensorInfo, factor: TensorInfo) -> None:
        """The weight, and the bias, as (IA)³ rescales them."""
        shape = weight.shape[::-1] if self._is_conv1d() else weight.shape
        by_output = factor.shape == (shape[0], 1) and len(shape) == 2
        if not by_output and (len(shape) != 2 or factor.shape != (1, shape[1])):
            self.problems.append(
                f"{self._module!r}: its factors are {list(factor.shape)}, {weight.name!r} of {self._base.label} is "
                f"{list(weight.shape)}; expected [out, 1] or [1, in]"
            )
            return
        by_row = by_output != self._is_conv1d()
        self.changed[weight.name] = Expanded.of(weight, Rescaled(factor, by_row))
        bias = self._base.tensors.get(f"{self._module}.bias")
        if by_output and bias is not None:
            self.changed[bias.name] = Expanded.of(bias, Rescaled(factor, True))

    def _scale(self) -> tuple[int, float]:
        """The module's rank, by the configuration, and what its product is multiplied by."""
        config = self._config
        rank = _by_pattern(config.get("rank_pattern"), self._module, config.get("r", 8))
        alpha = _by_pattern(config.get("alpha_pattern"), self._module, config.get("lora_alpha", 8))
        try:
            return int(rank), float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
        except (TypeError, ValueError, ZeroDivisionError):
            self.problems.append(f"{self._module!r}: r {rank!r} and lora_alpha {alpha!r} are no rank and number")
            return -1, 1.0

    def _transposed(self, product: tuple[int, int], weight: tuple[int, int], embedding: bool) -> bool:
        """Whether base stores the other way round what the product is: embeddings, and layers of the kind Conv1D."""
        if product != weight[::-1]:
            return False
        return embedding or product[0] != product[1] or self._is_conv1d()

    def _is_conv1d(self) -> bool:
        kind = self._base.config.get("model_type")
        return bool(self._config.get("fan_in_fan_out")) or (kind in TRANSPOSED and bool(CONV1D.fullmatch(self._module)))


def _matrix(info: TensorInfo) -> tuple[int, int]:
    """A tensor's shape as [first, rest]."""
    return (info.shape or (1,))[0], math.prod(info.shape[1:])


def _by_pattern(patterns: Any, module: str, default: Any) -> Any:
    """The value of the first pattern that ends the module's name, as PEFT looks it up."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
