"""The layers of a model, by the names of its tensors, and what comes before and after them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ..layers import INPUT, placed


@dataclass(slots=True)
class Stack:
    """Numbered layers of one name, each the names of its tensors by what follows the number; `before` and `after` are
    tensors outside of all layers that belong to this stack."""

    layers: dict[int, dict[str, str]] = field(default_factory=dict)
    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)

    @property
    def depth(self) -> int:
        return max(self.layers) + 1

    def names(self) -> Iterable[str]:
        """All its tensors, from the first layer to the last."""
        inner = [name for number in sorted(self.layers) for name in self.layers[number].values()]
        return [*self.before, *inner, *self.after]


def stacks(tensors: Iterable[str]) -> dict[str, Stack]:
    """The stacks of a model by their names; one of no name and no layers where nothing is numbered."""
    names = list(tensors)
    inside, found = placed(names), dict[str, Stack]()
    for name, (stack, number) in inside.items():
        rest = name[len(f"{stack}.{number}.") :]
        found.setdefault(stack, Stack()).layers.setdefault(number, {})[rest] = name
    found = found or {"": Stack()}
    for name in names:
        if name not in inside:
            early = INPUT.search(name) is not None
            owner = found[_owner(name, list(found), first=early)]
            (owner.before if early else owner.after).append(name)
    return found


def module_stack(module: str, names: Iterable[str]) -> str | None:
    """The stack that a module of a configuration is: the only one, the one of that name, or the one in whose name its
    name is; "text_decoder" and "vision_tower" are mergekit's names for those of language and of images."""
    known = list(names)
    if module in known:
        return module
    if len(known) == 1 and module in ("", "default"):
        return known[0]
    visual = [name for name in known if "vis" in name]
    words = {"text_decoder": [name for name in known if name not in visual], "vision_tower": visual}
    words["vision_model"] = visual
    hits = words.get(module) or [name for name in known if module and module in name.split(".")]
    return hits[0] if len(hits) == 1 else None


def _owner(name: str, known: list[str], *, first: bool) -> str:
    """The stack whose parent module a tensor is in, the innermost; else the first or the last of all."""
    parents = {stack: stack.rpartition(".")[0] + "." for stack in known}
    within = [stack for stack, parent in parents.items() if parent != "." and name.startswith(parent)]
    deepest = max((len(parents[stack]) for stack in within), default=0)
    within = [stack for stack in within if len(parents[stack]) == deepest]
    return (within or known)[0 if first else -1]
