"""Which tensors of a model are a folder's: found by name, and by memory where some are tied."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter

from torch import Tensor, nn

from ..dense import not_dense
from ..errors import InputError, nearest
from ..formats.contents import Contents
from ..formats.dtypes import INTEGER_DTYPES, TORCH_DTYPES
from ..formats.safetensors import TensorInfo, limited
from ..recipe.preflight import Rename, uniform_prefix


@dataclass(frozen=True, slots=True)
class Matched:
    """For a folder's tensors their names in the model: of shared ones one for each memory that has them (tied names
    share one), of heads all that share the parameter."""

    shared: dict[str, tuple[str, ...]]
    copied: dict[str, str]
    heads: dict[str, tuple[str, ...]]


def tensor_of(model: nn.Module, name: str) -> Tensor:
    """A parameter or buffer, as it is now."""
    found: Tensor = attrgetter(name)(model)
    return found


def match(model: nn.Module, contents: Contents, rename: Rename) -> Matched:
    """Find every tensor of the folder in the model; InputError with everything that is missing or does not fit.

    rename: (old, new) prefixes that turn the model's names into the folder's.
    """
    found = _Found(model, contents, rename)
    problems = found.prefix_problem() or (found.missing_problems() + found.unknown_problems())
    problems += found.tied_problems() + found.kind_problems()
    if problems:
        raise InputError(f"model: {problem}" for problem in problems)
    return Matched(
        {name: tuple(memories.values()) for name, memories in found.shared.items()},
        {name: found.names[name] for name in contents.copied if name in found.names},
        {name: found.twins(name) for name in found.heads if name in found.names},
    )


class _Found:
    """The model's tensors under the folder's names, and where the folder's shared ones are among them."""

    def __init__(self, model: nn.Module, contents: Contents, rename: Rename) -> None:
        self.contents = contents
        state = model.state_dict(keep_vars=True)
        self.names = {_renamed(name, rename): name for name, t in state.items() if isinstance(t, Tensor)}
        self.tensors: dict[str, Tensor] = {name: state[own] for name, own in self.names.items()}
        self.heads = {name for tensors in (contents.home, *contents.own.values()) for name in tensors}
        self.canonical = {alias: name for name, aliases in contents.aliases.items() for alias in aliases}
        self.shared: dict[str, dict[object, str]] = {}
        self.owners: dict[object, set[str]] = {}
        for name in self.names:
            owner = self.owner(name)
            if owner in contents.shared:
                memory = memory_key(self.tensors[name])
                self.shared.setdefault(owner, {}).setdefault(memory, self.names[name])
                self.owners.setdefault(memory, set()).add(owner)
        self.missing = [name for name in contents.shared if name not in self.shared]
        own = dict.fromkeys(name for tensors in contents.own.values() for name in tensors)
        self.missing += [name for name in own if name not in self.names]
        known = {*contents.shared, *self.canonical, *contents.copied, *self.heads}
        self.right = [name for name in self.names if name in known]
        self.unknown = [
            name for name, tensor in self.tensors.items() if name not in known and memory_key(tensor) not in self.owners
        ]

    def owner(self, name: str) -> str:
        """The name under which the folder has what it calls `name`."""
        return self.canonical.get(name, name)

    def twins(self, name: str) -> tuple[str, ...]:
        """All names in the model of this head's parameter."""
        memory = memory_key(self.tensors[name])
        return tuple(own for other, own in self.names.items() if memory_key(self.tensors[other]) == memory)

    def prefix_problem(self) -> list[str]:
        """One finding where a prefix is all that is wrong."""
        prefix = uniform_prefix(self.missing, self.unknown, self.right)
        if prefix is None:
            return []
        old, new = prefix
        where = f"with the prefix {old!r}" if old else f"without the prefix {new!r}"
        return [
            f"{len(self.missing)} tensors of {self.contents.folder.path} are missing, all found {where}; "
            f"pass rename=[({old!r}, {new!r})]"
        ]

    def missing_problems(self) -> list[str]:
        def problem(name: str) -> str:
            tasks = ", ".join(task for task, tensors in self.contents.own.items() if name in tensors)
            whose = f", which {tasks} has for itself," if tasks else ""
            return f"tensor {name!r} of {self.contents.folder.path}{whose} is missing{nearest(name, self.unknown)}"

        return limited(self.missing, problem)

    def unknown_problems(self) -> list[str]:
        """Parameters that the folder does not have; what buffers hold is the model's own affair."""
        unknown = [name for name in self.unknown if isinstance(self.tensors[name], nn.Parameter)]
        return limited(
            unknown,
            lambda name: (
                f"parameter {name!r} is not in {self.contents.folder.path}{nearest(name, self.missing)}; "
                "build the model that was merged"
            ),
        )

    def tied_problems(self) -> list[str]:
        for name in self.heads & self.names.keys():
            self.owners.get(memory_key(self.tensors[name]), set()).add(name)
        tied = [sorted(owners) for owners in self.owners.values() if len(owners) > 1]
        return limited(
            tied,
            lambda names: (
                f"{' and '.join(map(repr, names))} are one parameter, the folder keeps them apart; untie them "
                "(tie_word_embeddings=False)"
            ),
        )

    def kind_problems(self) -> list[str]:
        """Shapes and dtypes, and what has no memory in order."""
        contents = self.contents
        stored = {name: contents.shared[self.owner(name)] for name in self.names if self.owner(name) in self.shared}
        stored |= {name: info for name, info in contents.copied.items() if name in self.names}
        odd = {name: why for name in self.right if (why := not_dense(self.tensors[name])) is not None}
        wrong = [(name, info) for name, info in stored.items() if name not in odd and not self._fits(name, info)]
        return limited(wrong, self._kind_problem) + limited([*odd], lambda name: f"tensor {name!r} {odd[name]}")

    def _fits(self, name: str, info: TensorInfo) -> bool:
        dtypes = TORCH_DTYPES.values() if name not in self.contents.copied else [INTEGER_DTYPES.get(info.dtype)]
        return tuple(self.tensors[name].shape) == info.shape and self.tensors[name].dtype in dtypes

    def _kind_problem(self, entry: tuple[str, TensorInfo]) -> str:
        name, info = entry
        tensor = self.tensors[name]
        return (
            f"tensor {name!r} is {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}, "
            f"{self.contents.folder.path} has {info.dtype} {list(info.shape)}; build the model that was merged"
        )


def _renamed(name: str, rename: Rename) -> str:
    old, new = next((pair for pair in rename if name.startswith(pair[0])), ("", ""))
    return new + name[len(old) :]


def memory_key(tensor: Tensor) -> object:
    """What is equal for tied tensors alone."""
    if not_dense(tensor) or not tensor.numel():
        return id(tensor)
    return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()
