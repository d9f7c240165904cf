"""The candidates: the initial solution and the pool, as files or in memory, swept through block by block."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from .. import ops
from ..engine.reading import whole
from ..engine.stream import Source, Target, Work, stream
from ..errors import InputError, MergeError, attempt
from ..formats.checkpoint import Checkpoint
from ..formats.dtypes import dense_problems
from ..formats.folder import printable
from ..formats.layout import plan_layout
from ..formats.mapping import Inputs
from ..formats.models import open_model
from ..formats.safetensors import Header, TensorInfo
from ..recipe.memory import LANES, MAX_CHUNK
from .matching import Slot, Stored, find, slots

INITIAL = "initial"
PIECE = 1 << 27  # elements of all candidates together that are swept through at a time
Member = str | Path | Mapping[str, Tensor]
Pool = Sequence[Member] | Mapping[str, Member]
Use = Callable[[int, list[Tensor], list[Tensor]], None]  # first element, candidates' chunks, targets' memory


@dataclass(frozen=True, slots=True)
class Scores:
    """By tensor, in the slots' order: ⟨g, θ_k⟩ [T, K], ‖θ_k‖² [T, K] and ‖g‖² [T], float64; 0 what was not wanted."""

    dots: Tensor
    norms: Tensor
    gradient_norms: Tensor


class Candidates:
    """`names`: the initial solution first, then the pool's; `slots` the tensors to merge. `notes` tell who was skipped,
    `identities` the files of each, `checkpoints` those that are on disk."""

    def __init__(self, slots: Mapping[str, Slot]) -> None:
        self.slots = dict(slots)
        self.names: list[str] = []
        self.notes: list[str] = []
        self.identities: dict[str, Any] = {}
        self.checkpoints: dict[str, Checkpoint] = {}
        self._stored: list[Mapping[str, Stored]] = []
        self._headers: dict[Path, Header] = {}
        self._files: Inputs | None = None
        self._changing: set[int] = set()  # where memory is that the run writes to

    @classmethod
    def of(
        cls, model: nn.Module, pool: Pool, init: Member | None, task_specific: Sequence[str], skip_misfits: bool
    ) -> Candidates:
        """An initial solution ("base": the model as it is; None: there is none), and a pool; InputError with all
        problems."""
        candidates, problems = cls(slots(model, task_specific)), list[str]()
        state = model.state_dict()
        candidates._changing = {state[name].untyped_storage().data_ptr() for name in candidates.slots} - {0}
        attempt(problems, lambda: candidates.add_pool(pool, task_specific, skip_misfits))
        if init is not None and init != "base":
            attempt(problems, lambda: candidates.add(INITIAL, init, task_specific, first=True))
        if problems:
            raise InputError(problems)
        if init == "base":
            candidates.keep(INITIAL, model.state_dict())
        return candidates

    @property
    def lead(self) -> Checkpoint | None:
        """The first that lies on disk."""
        return next((self.checkpoints[name] for name in self.names if name in self.checkpoints), None)

    @property
    def chunk(self) -> int:
        """Elements of a block: fewer of more candidates, so that a block of all of them stays as small."""
        return max(1, min(MAX_CHUNK, PIECE // len(self.names)) // ops.BLOCK) * ops.BLOCK

    def add(self, name: str, member: Member, others: Sequence[str], *, first: bool = False) -> None:
        """Take a checkpoint or a state dict; InputError where it is none that fits the slots.

        A state dict that is the model's own is copied, since the model is about to change.
        """
        if isinstance(member, Mapping):
            problems = dense_problems(member, name, others)
            if problems:
                raise InputError(problems)
            given = {n: t.detach() for n, t in member.items() if isinstance(t, Tensor)}
            found = find(name, given, self.slots, others)
            own = {slot: self._lasting(t) if isinstance(t, Tensor) else t for slot, t in found.items()}
            self._take(name, own, None, (), first)
        else:
            opened = open_model(member, name)
            if opened.adapter is not None:
                raise InputError(f"{name}: {opened.path} is an adapter; write MODEL+ADAPTER")
            found = find(name, opened.tensors, self.slots, others)
            identity = {"source": printable(opened.place), "files": opened.identity()}
            self.checkpoints[name] = opened
            self._take(name, found, identity, opened.headers, first)

    def add_pool(self, pool: Pool, others: Sequence[str], skip_misfits: bool) -> None:
        """Take all members; InputError with the problems of all, or notes of those that were skipped."""
        problems: list[str] = []
        for name, member in named(pool).items():
            own: list[str] = []
            attempt(own, lambda name=name, member=member: self.add(name, member, others))  # type: ignore[misc]
            if own and skip_misfits:
                self.notes.append(f"skipped {name}: {own[0]}{f' (and {len(own) - 1} more)' if len(own) > 1 else ''}")
            else:
                problems += own
        if problems:
            raise InputError(
                [*problems, "skip_misfits=True (in a recipe, skip_misfits: true) leaves out what does not fit"]
            )
        if not self.names:
            raise InputError(["pool: nothing is left of it", *self.notes])

    def keep(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Take tensors that are about to change, the last to be taken but first in order.

        They are copied to a temporary file, mapped from there, and the file is removed.
        """
        layout = plan_layout([(n, slot.dtype, slot.shape) for n, slot in self.slots.items()], limit=1 << 62)
        (plan,) = layout.files
        with tempfile.NamedTemporaryFile(prefix="fastmerge-", suffix=".safetensors") as stream:
            stream.write(plan.header)
            for n, slot in self.slots.items():
                stream.seek(layout.places[n].start)
                if _numel(slot):
                    stream.write(tensors[n].detach().reshape(-1).cpu().view(torch.uint8).numpy().data)
            stream.flush()
            file = Path(stream.name)
            status = file.stat()
            places = layout.places
            infos = {
                n: TensorInfo(n, slot.dtype, slot.shape, file, places[n].start, places[n].stop)
                for n, slot in self.slots.items()
            }
            header = Header(file, status.st_size, status.st_mtime_ns, infos, {}, "")
            self._take(name, infos, None, (header,), True)
            self.files.check_unchanged()  # maps it, before the file is gone

    @property
    def files(self) -> Inputs:
        """Maps of all files."""
        if self._files is None:
            self._files = Inputs(self._headers.values())
        return self._files

    def whole(self, slot: str, k: int) -> Tensor:
        """A candidate's tensor, not copied."""
        stored = self._stored[k][slot]
        return whole(self.files, stored) if isinstance(stored, TensorInfo) else stored

    def work(self, slot: str, wanted: Sequence[int], use: Use, targets: tuple[Target, ...] = ()) -> Work:
        """Sweep through one tensor of some candidates."""
        stored = [self._stored[k][slot] for k in wanted]
        numel = _numel(self.slots[slot])

        def run(start: int, read: list[Tensor], made: list[Tensor]) -> None:
            chunks, stop = iter(read), min(start + self.chunk, numel)
            own = [next(chunks) if isinstance(t, TensorInfo) else t.reshape(-1)[start:stop] for t in stored]
            use(start, own, made)

        return Work(numel, tuple(Source(t) for t in stored if isinstance(t, TensorInfo)), targets, run)

    def sweep(self, works: Sequence[Work], lanes: int = 1) -> None:
        """Carry out works that write no file, `lanes` of them at a time."""
        pieces = [piece for work in works for piece in work.pieces(self.chunk)]
        stream(pieces, self.files, _Nowhere(), again=True, lanes=lanes)
        self.files.check_unchanged()

    def scores(self, gradient: Mapping[str, Tensor], wanted: Mapping[str, Sequence[int]]) -> Scores:
        """Inner products of a flat gradient with the candidates wanted of each tensor, each block read once.

        Tensors without a gradient (buffers) have zeros.
        """
        t, k = len(self.slots), len(self.names)
        dots, norms, own = (torch.zeros(shape, dtype=torch.float64) for shape in ((t, k), (t, k), (t,)))
        works = []
        for row, name in enumerate(self.slots):
            if name not in gradient or not wanted[name]:
                continue
            for group in _groups(wanted[name]):
                g = gradient[name]
                sums = torch.zeros(2 * len(group) + 1, dtype=torch.float64, device=g.device)
                works.append((row, group, sums, self.work(name, group, _scoring(g, sums))))
        on_cpu = all(sums.device.type == "cpu" for _, _, sums, _ in works)
        self.sweep([work for *_, work in works], LANES if on_cpu else 1)
        for row, group, sums, _ in works:
            n, found = len(group), sums.cpu()
            dots[row, group], norms[row, group], own[row] = found[:n], found[n : 2 * n], found[2 * n]
        return Scores(dots, norms, own)

    def check(self, scores: Scores, when: str) -> None:
        """MergeError that names a gradient, or a candidate's tensor, that is not finite."""
        names = list(self.slots)
        wild = [names[i] for i in (~scores.gradient_norms.isfinite()).nonzero().flatten().tolist()]
        if wild:
            raise MergeError(f"the gradient of {wild[0]!r} is not finite {when}{_more(wild)}")
        bad = (~scores.norms.isfinite()).nonzero().tolist()
        if bad:
            where = [f"{self.names[k]}: tensor {names[i]!r}" for i, k in bad]
            raise MergeError(f"{where[0]} holds NaN or infinity{_more(where)}; mend the checkpoint, or leave it out")

    def combining(
        self, slot: str, weights: Sequence[float], out: Tensor | None, bad: list[str], targets: tuple[Target, ...] = ()
    ) -> Work:
        """Make one tensor of the candidates whose weights are not 0, in a flat tensor or, without one, in a target.

        Its name joins `bad` where the sum is not finite.
        """
        wanted = [k for k, w in enumerate(weights) if w != 0]
        own = [weights[k] for k in wanted]

        def combine(start: int, chunks: list[Tensor], made: list[Tensor]) -> None:
            part = made[0] if out is None else out[start : start + chunks[0].numel()]
            if weighted_sum(chunks, own, part) and slot not in bad:
                bad.append(slot)

        return self.work(slot, wanted, combine, targets)

    def stored_name(self, slot: str) -> str:
        """What the first candidate that lies on disk calls a tensor."""
        for name, stored in zip(self.names, self._stored, strict=True):
            own = stored[slot]
            if name in self.checkpoints and isinstance(own, TensorInfo):
                return own.name
        return slot

    def _lasting(self, tensor: Tensor) -> Tensor:
        return tensor.clone() if tensor.untyped_storage().data_ptr() in self._changing else tensor

    def _take(
        self, name: str, found: Mapping[str, Stored], identity: Any, headers: Sequence[Header], first: bool
    ) -> None:
        place = 0 if first else len(self.names)
        self.names.insert(place, name)
        self._stored.insert(place, found)
        self.identities[name] = identity
        self._headers |= {header.file: header for header in headers}
        self._files = None


def named(pool: Pool) -> dict[str, Member]:
    """The pool's members by name: those given, or what folders and files are called, or their numbers."""
    if isinstance(pool, Mapping):
        found = {str(name): member for name, member in pool.items()}
    else:
        members = list(pool)
        names = [f"model{i}" if isinstance(m, Mapping) else _called(m) for i, m in enumerate(members)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InputError(f"pool: several members are called {', '.join(twice)}; pass a mapping of names")
        found = dict(zip(names, members, strict=True))
    problems = [] if found else ["pool: is empty; pass checkpoints"]
    if INITIAL in found:
        problems.append(f"pool: {INITIAL!r} is what the initial solution is called; choose another name")
    if problems:
        raise InputError(problems)
    return found


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> int:
    """out = Σ_k w_k · θ_k in the order of k, in the working type, rounded once; how many elements are not finite."""
    own, left = [t.to(out.device) for t in tensors], list(weights)
    wide = ops.working_dtype(own)
    while len(own) > ops.MAX_MODELS:
        first = ops.combine(None, own[: ops.MAX_MODELS], left[: ops.MAX_MODELS], dtype=wide).merged
        own, left = [first, *own[ops.MAX_MODELS :]], [1.0, *left[ops.MAX_MODELS :]]
    return ops.combine(None, own, left, out=out).nonfinite


def check_combined(bad: Sequence[str], culprit: str = "the candidates") -> None:
    """MergeError that names the tensors of `combining` that are not finite."""
    if bad:
        raise MergeError(f"tensor {bad[0]!r}: the combination is not finite{_more(bad)}; mend {culprit}")


@contextmanager
def kept_whole(go_back: Callable[[], None]) -> Iterator[None]:
    """Where a step fails, the model goes back to the one before; MergeError where that fails too."""
    try:
        yield
    except BaseException as error:
        try:
            go_back()
        except BaseException as again:
            raise MergeError(
                f"the model is of no step: one failed ({error!r}), and so did going back ({again!r}); load its weights "
                "again"
            ) from error
        raise


def rewrite(
    candidates: Candidates, tensors: Mapping[str, Tensor], make: Callable[[str, Tensor, list[str]], Work]
) -> None:
    """Give a model's tensors what works make of the candidates; MergeError where that is not finite."""
    bad: list[str] = []
    candidates.sweep([make(name, tensor.detach().view(-1), bad) for name, tensor in tensors.items()])
    for tensor in tensors.values():
        increment_version(tensor)
    torch.clear_autocast_cache()  # of the weights before, where all of a run is within autocast
    check_combined(bad)


class _Nowhere:
    """A sink for sweeps that write no file."""

    def slot(self) -> Any:
        return None

    def put(self, slot: Any) -> None:
        pass


class _Chunks(Protocol):
    def __call__(self, start: int, chunks: list[Tensor], _: list[Tensor]) -> None: ...


def _scoring(g: Tensor, sums: Tensor) -> _Chunks:
    def score(start: int, chunks: list[Tensor], _: list[Tensor]) -> None:
        part = g[start : start + chunks[0].numel()]
        ops.inner_products(part, [chunk.to(g.device) for chunk in chunks], sums=sums)

    return score


def _more(items: Sequence[str]) -> str:
    return f" (and {len(items) - 1} more)" if len(items) > 1 else ""


def _groups(wanted: Sequence[int]) -> list[list[int]]:
    """As many at a time as ops take."""
    return [list(wanted[i : i + ops.MAX_MODELS]) for i in range(0, len(wanted), ops.MAX_MODELS)]


def _numel(slot: Slot) -> int:
    return torch.Size(slot.shape).numel()


def _called(member: str | Path) -> str:
    return Path(member).expanduser().resolve().name.removesuffix(".safetensors")
