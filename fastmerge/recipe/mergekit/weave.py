"""Which stored tensor serves as which of the result.

A slice of a configuration is some layers of the result, and for each of its sources the layers of a model that they
are merged from. Layers are renamed, never copied: base and models of the merge are woven of tensors of the checkpoints,
each under the name that it has in the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ...errors import InputError, nearest
from ...formats.checkpoint import Checkpoint
from ...formats.safetensors import TensorInfo
from .config import MergekitConfig, Module, Settings
from .methods import MergekitMethod
from .stacks import Stack, module_stack, stacks


@dataclass(frozen=True, slots=True)
class Strand:
    """A source of a slice: a model, its first layer, and the parameters that it has here."""

    model: str
    first: int
    settings: Settings


@dataclass(frozen=True, slots=True)
class Stretch:
    """`depth` layers of the result. `strands` are merged; `base` is apart from them, where the method takes it so.
    `settings` are what is said of all strands, from the nearest to the farthest."""

    where: str
    depth: int
    base: Strand | None
    strands: tuple[Strand, ...]
    settings: tuple[Settings, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor of the result is: in which stretch, how deep in it (0 to 1), and its name in each strand."""

    stretch: Stretch
    t: float
    names: tuple[str, ...]


@dataclass(slots=True)
class Weave:
    """Base and models as they are merged, and the places of the result's tensors. `layers`: by stack the layers that
    the result's are made of, of base, or else of the first model; empty where all are as they were."""

    base: Checkpoint | None
    models: list[Checkpoint]
    places: dict[str, Place]
    layers: dict[str, list[tuple[str, int]]] = field(default_factory=dict)


def weave(config: MergekitConfig, method: MergekitMethod, opened: Mapping[str, Checkpoint]) -> Weave:
    """The merge that a configuration means, of checkpoints by the names that it calls them."""
    problems: list[str] = []
    if config.models is None:
        found = _woven(config, method, opened, problems)
    else:
        found = _whole(config, method, opened, problems)
    if problems or found is None:
        raise InputError(problems)
    return found


def _whole(
    config: MergekitConfig, method: MergekitMethod, opened: Mapping[str, Checkpoint], problems: list[str]
) -> Weave | None:
    """Models that are merged as they are."""
    anatomy = {name: stacks(checkpoint.tensors) for name, checkpoint in opened.items()}
    lead = config.base_model or config.references()[0]
    problems += _depth_problems(anatomy, lead)
    strands = _with_base([Strand(m.model, 0, m.parameters or {}) for m in config.models or []], config.base_model)
    settings = (config.parameters or {},)
    stretch = _stretch("models", 0, strands, config.base_model, settings, method, problems)
    if problems:
        return None
    places = {
        name: Place(stretch, t, (name,) * len(stretch.strands))
        for stack in anatomy[lead].values()
        for name, t in _depths(stack)
    }
    base = None if config.base_model is None else replace(opened[config.base_model], label="base")
    return Weave(base, [opened[strand.model] for strand in stretch.strands], places)


def _depths(stack: Stack) -> Iterator[tuple[str, float]]:
    """mergekit's depth of every tensor: 0 outside of the layers, before and after them."""
    for name in (*stack.before, *stack.after):
        yield name, 0.0
    for rank, number in enumerate(sorted(stack.layers)):
        for name in stack.layers[number].values():
            yield name, _depth(rank, len(stack.layers))


def _depth(number: int, layers: int) -> float:
    return number / (layers - 1) if layers > 1 else 1.0


def _with_base(strands: list[Strand], base: str | None) -> list[Strand]:
    """Models that are merged whole, with base behind them, if it is none of them."""
    there = base is None or any(strand.model == base for strand in strands)
    return strands if there else [*strands, Strand(base or "", 0, {})]


def _stretch(
    where: str,
    depth: int,
    strands: Sequence[Strand],
    base: str | None,
    settings: tuple[Settings, ...],
    method: MergekitMethod,
    problems: list[str],
) -> Stretch:
    """A stretch, and what keeps the method from merging it."""
    names = [strand.model for strand in strands]
    problems += [f"{where}: {name} is there {names.count(name)} times; once is enough" for name in _twice(names)]
    apart = None
    if method.base != "ignored":
        apart = next((strand for strand in strands if strand.model == base), None)
        strands = [strand for strand in strands if strand.model != base]
        if base is None and method.base == "required":
            problems.append(f"{where}: {method.name} needs a base_model")
        elif base is not None and apart is None:
            problems.append(f"{where}: base_model {base} is none of its sources; add it, with its layers")
    least, most = method.count
    if not least <= len(strands) <= most:
        wanted = f"{least} to {most} models" if least < most else f"{least} model{'s' if least > 1 else ''}"
        beside = " beside base_model" if method.base != "ignored" else ""
        there = ", ".join(strand.model for strand in strands) or "none"
        problems.append(f"{where}: {method.name} merges {wanted}{beside}, these are {len(strands)} ({there})")
    return Stretch(where, depth, apart, tuple(strands), settings)


def _twice(names: Sequence[str]) -> list[str]:
    return [name for name in dict.fromkeys(names) if names.count(name) > 1]


def _depth_problems(anatomy: Mapping[str, Mapping[str, Stack]], lead: str) -> Iterator[str]:
    """Models of other depths than the lead's, which cannot be merged as they are."""
    for stack, own in anatomy[lead].items():
        for name, other in anatomy.items():
            if own.layers and stack in other and other[stack].depth != own.depth:
                yield (
                    f"{name} has {other[stack].depth} layers ({stack}), {lead} has {own.depth}; "
                    "say by slices which of them are merged"
                )


# Slices


def _woven(
    config: MergekitConfig, method: MergekitMethod, opened: Mapping[str, Checkpoint], problems: list[str]
) -> Weave | None:
    """Models whose layers are put together anew."""
    anatomy = {name: stacks(checkpoint.tensors) for name, checkpoint in opened.items()}
    lead = config.references()[0]
    by_stack: dict[str, list[Stretch]] = {}
    for module, block in config.blocks().items():
        stack = module_stack(module, anatomy[lead])
        if stack is None:
            there = ", ".join(anatomy[lead])
            if module:
                hint = nearest(module, anatomy[lead])
                problems.append(f"modules.{module}: is none of the stacks of {lead}{hint}: {there}")
            else:
                problems.append(
                    f"slices: {lead} has several stacks ({there}); write modules: {{NAME: {{slices: …}}, …}}"
                )
        elif stack in by_stack:
            problems.append(f"modules.{module}: {stack} is there twice")
        else:
            by_stack[stack] = list(_stretches(config, module, block, stack, anatomy, method, problems))
    left = [stack for stack in anatomy[lead] if stack not in by_stack]
    if left and not problems:
        problems.append(f"modules: nothing is said of {', '.join(left)}; a module may say models, too")
    every = [stretch for own in by_stack.values() for stretch in own]
    if len({len(stretch.strands) for stretch in every}) > 1:
        found = ", ".join(f"{stretch.where} {len(stretch.strands)}" for stretch in every)
        problems.append(f"slices merge different numbers of models ({found}), which is not done in one merge")
    if problems:
        return None
    weaver = _Weaver(opened, anatomy, len(every[0].strands))
    for stack, stretches in by_stack.items():
        weaver.weave(stack, stretches)
    return weaver.woven(opened[lead], every)


def _stretches(
    config: MergekitConfig,
    name: str,
    module: Module,
    stack: str,
    anatomy: Mapping[str, Mapping[str, Stack]],
    method: MergekitMethod,
    problems: list[str],
) -> Iterator[Stretch]:
    """The stretches of a module, and what is wrong with them."""
    prefix, said = (f"modules.{name}.", module.parameters or {}) if name else ("", {})
    above = (said, config.parameters or {})
    if module.models is not None:
        whole = [Strand(model.model, 0, model.parameters or {}) for model in module.models]
        whole = _with_base(whole, config.base_model)
        depths = {strand.model: len(_layers(anatomy[strand.model], stack)) for strand in whole}
        if len(set(depths.values())) > 1:
            found = ", ".join(f"{model} {depth}" for model, depth in depths.items())
            problems.append(
                f"{prefix}models: have different numbers of layers ({found}); say by slices which are merged"
            )
        depth = next(iter(depths.values()))
        yield _stretch(f"{prefix}models", depth, whole, config.base_model, above, method, problems)
    for i, own in enumerate(module.slices or []):
        where = f"{prefix}slices[{i}]"
        depths = {}
        for j, source in enumerate(own.sources):
            first, last = source.layer_range
            there = len(_layers(anatomy[source.model], stack))
            depths[f"sources[{j}] {last - first}"] = last - first
            if not 0 <= first < last <= there:
                text = f"{where}.sources[{j}].layer_range is [{first}, {last}]; {source.model} has {there} layers"
                problems.append(f"{text} ({stack}), of which the first is 0, and the last is not taken")
        if len(set(depths.values())) > 1:
            problems.append(f"{where}: sources have different numbers of layers ({', '.join(depths)})")
        strands = [Strand(source.model, source.layer_range[0], source.parameters or {}) for source in own.sources]
        depth, base = next(iter(depths.values())), own.base_model or config.base_model
        yield _stretch(where, depth, strands, base, (own.parameters or {}, *above), method, problems)


def _layers(model: Mapping[str, Stack], stack: str) -> Mapping[int, Mapping[str, str]]:
    return model[stack].layers if stack in model else {}


class _Weaver:
    """Puts tensors under the names that they have in the result."""

    def __init__(
        self, opened: Mapping[str, Checkpoint], anatomy: Mapping[str, Mapping[str, Stack]], models: int
    ) -> None:
        self._opened = opened
        self._anatomy = anatomy
        self._base: dict[str, TensorInfo] = {}
        self._models: list[dict[str, TensorInfo]] = [{} for _ in range(models)]
        self._places: dict[str, Place] = {}
        self._made: dict[str, list[tuple[str, int]]] = {}

    def weave(self, stack: str, stretches: Sequence[Stretch]) -> None:
        """A stack of layers, and what is before and after it, as the first and the last stretch say."""
        made = self._made.setdefault(stack, [])
        self._outside(stretches[0], {m: own[stack].before for m, own in self._anatomy.items() if stack in own})
        for stretch in stretches:
            for i in range(stretch.depth):
                parts = {
                    strand.model: self._anatomy[strand.model][stack].layers.get(strand.first + i, {})
                    for strand in self._all(stretch)
                }
                new = f"{stack}.{len(made)}."
                self._put(stretch, _depth(i, stretch.depth), new, parts)
                lead = self._all(stretch)[0]
                made.append((lead.model, lead.first + i))
        self._outside(stretches[-1], {m: own[stack].after for m, own in self._anatomy.items() if stack in own})

    def woven(self, lead: Checkpoint, stretches: Sequence[Stretch]) -> Weave:
        """What has been woven, with the configuration of the lead."""
        models = []
        for k, tensors in enumerate(self._models):
            used = list(dict.fromkeys(stretch.strands[k].model for stretch in stretches))
            one = self._opened[used[0]]
            label, config = (one.label, one.config) if len(used) == 1 else (f"source{k + 1}", lead.config)
            models.append(Checkpoint(lead.folders[0], label, tensors, config, (), ()))
        based = any(stretch.base for stretch in stretches)
        base = Checkpoint(lead.folders[0], "base", self._base, lead.config, (), ()) if based else None
        first = base or models[0]
        notes = tuple(note for checkpoint in self._opened.values() for note in checkpoint.notes)
        leading = replace(first, config=lead.config, notes=notes)
        return Weave(leading if base else None, models if base else [leading, *models[1:]], self._places, self._made)

    def _outside(self, stretch: Stretch, names: Mapping[str, Sequence[str]]) -> None:
        self._put(stretch, 0.0, "", {model: {name: name for name in own} for model, own in names.items()})

    def _put(self, stretch: Stretch, t: float, prefix: str, parts: Mapping[str, Mapping[str, str]]) -> None:
        """Tensors of all strands, by what their names in the result end with."""
        strands = self._all(stretch)
        for rest in dict.fromkeys(rest for strand in strands for rest in parts.get(strand.model, ())):
            name = prefix + rest
            own = [parts.get(strand.model, {}).get(rest) for strand in strands]
            for strand, old in zip(strands, own, strict=True):
                if old is not None:
                    info = replace(self._opened[strand.model].tensors[old], name=name)
                    self._target(stretch, strand)[name] = info
            names = tuple(old or name for old in own)
            self._places[name] = Place(stretch, t, names[len(strands) - len(stretch.strands) :])

    def _target(self, stretch: Stretch, strand: Strand) -> dict[str, TensorInfo]:
        return self._base if strand is stretch.base else self._models[stretch.strands.index(strand)]

    @staticmethod
    def _all(stretch: Stretch) -> list[Strand]:
        """Base first."""
        return [*([stretch.base] if stretch.base else []), *stretch.strands]
