"""Checkpoints as they lie on disk: one safetensors file, or a folder with one or with an index of shards."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import InputError, MergeError, attempt
from .folder import printable
from .hub import Missing, Snapshot, find
from .safetensors import Header, TensorInfo, limited, read_header
from .spec import hub_id, local_path

STEMS = ("model", "diffusion_pytorch_model", "adapter_model")  # names that Hugging Face libraries write
ADAPTER_CONFIG = "adapter_config.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
JSON_LIMIT = 50_000_000  # bytes
PIECES, PIECE = 256, 4096  # of a file that its sample consists of, and bytes of each


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tensors of a checkpoint, in the order of its files, its config.json ({} without) and notes for the user.

    `adapter` is the adapter_config.json of one that is an adapter, `place` where it is: a path in full, or the Hub's
    name with its commit; `missing` is yet to be fetched from there.
    """

    path: Path
    label: str
    tensors: dict[str, TensorInfo]
    config: dict[str, Any]
    headers: tuple[Header, ...]
    notes: tuple[str, ...]
    adapter: dict[str, Any] | None = None
    place: str = ""
    missing: tuple[Missing, ...] = ()

    def fetched(self) -> Checkpoint:
        """The checkpoint with all of its files on this disk; MergeError where the Hub gave other ones."""
        if not self.missing:
            return self
        for missing in self.missing:
            missing.fetch()
        headers = tuple(read_header(header.file) for header in self.headers)
        changed = [new.file for old, new in zip(self.headers, headers, strict=True) if old.digest != new.digest]
        if changed:
            raise MergeError(f"{self.label}: {changed[0]} is not what the Hub said it would be; download it again")
        return replace(self, headers=headers, missing=())

    @property
    def folders(self) -> list[Path]:
        """Where its files lie."""
        return [self.path] if self.path.exists() else list(dict.fromkeys(header.file.parent for header in self.headers))

    @property
    def places(self) -> list[Path]:
        """What is lost where a result replaces it: its folders and files, wherever links lead."""
        found = [*self.folders, *(header.file for header in self.headers)]
        return [place for path in found for place in places(path)]

    def identity(self) -> list[dict[str, Any]]:
        """What tells this checkpoint from another without reading all of its weights.

        Fine-tunes of one model have headers that are equal; samples of their files are not.
        """
        return [
            {
                "file": printable(h.file.name),
                "size": h.size,
                "header_sha256": h.digest,
                "sample_sha256": _sample(h.file),
            }
            for h in self.headers
        ]


def open_checkpoint(path: str | Path, label: str, *, fetch: bool = True) -> Checkpoint:
    """Open a folder, a .safetensors file, or a model of the Hugging Face Hub ("org/name", "org/name@revision").

    Reads headers only, also of the Hub's files, which then are downloaded into its cache unless told not to `fetch`.
    Raises InputError with every problem found; `label` is the name they give the model.
    """
    try:
        root, snapshot = _locate(os.fspath(path), label)
        files, index, notes, problems = ([root], None, [], []) if root.is_file() else _files(root, snapshot)
    except OSError as error:  # no permission, or a name longer than the file system takes
        raise InputError(f"{label}: {path} cannot be read: {error.strerror}") from None
    headers = []
    for file in files:
        try:
            headers.append(read_header(file) if snapshot is None else snapshot.header(file))
        except InputError as error:  # noqa: PERF203 - the problems of all files are wanted
            problems += error.problems
    tensors = _tensors(root, headers, index, notes, problems)
    kept: dict[str, Any] = {}
    for name in ("config.json", ADAPTER_CONFIG):
        if root.is_dir() and (root / name).is_file():
            kept[name] = attempt(problems, partial(read_json, root / name))
    is_adapter = any(file.name.startswith("adapter_model") for file in files)
    if not problems and not tensors:
        problems.append(f"{root}: holds no tensors; give the folder that save_pretrained() wrote")
    if problems and snapshot is not None and snapshot.offline:
        problems.append(f"{path}: this is what the cache has of it; the Hub could not be asked: {snapshot.offline}")
    if problems:
        raise InputError(f"{label}: {problem}" for problem in problems)
    missing = None if snapshot is None else snapshot.missing(files)
    opened = Checkpoint(
        root,
        label,
        tensors,
        kept.get("config.json") or {},
        tuple(headers),
        tuple(f"{label}: {note}" for note in notes),
        kept.get(ADAPTER_CONFIG) if is_adapter else None,
        str(root.absolute()) if snapshot is None else f"{snapshot.repo}@{snapshot.commit}",
        () if missing is None else (missing,),
    )
    return opened.fetched() if fetch else opened


def _tensors(
    root: Path, headers: Sequence[Header], index: dict[str, str] | None, notes: list[str], problems: list[str]
) -> dict[str, TensorInfo]:
    """The tensors of all files, those that an index lists; what is strange joins the notes or the problems."""
    tensors: dict[str, TensorInfo] = {}
    twice = []
    for header in headers:
        twice += [(info, tensors[name]) for name, info in header.tensors.items() if name in tensors]
        tensors |= header.tensors
    problems += limited(
        twice,
        lambda t: f"{root}: tensor {t[0].name!r} is both in {t[1].file.name} and in {t[0].file.name}; save it again",
    )
    if index is None or problems:
        return tensors
    problems += _index_problems(root, index, tensors)
    unlisted = [name for name in tensors if name not in index]
    if unlisted:
        notes.append(f"{len(unlisted)} tensors that the index does not list are ignored ({unlisted[0]}, …)")
    return {name: tensor for name, tensor in tensors.items() if name in index}


def places(path: Path) -> list[Path]:
    """A folder or a file, and what links in the folder lead to."""
    links = [inner for inner in path.iterdir() if inner.is_symlink()] if path.is_dir() else []
    return [path, *(link.resolve() for link in links)]


def same_files(recorded: Sequence[Mapping[str, Any]], checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint's files are those of a recorded identity, whatever they are called."""

    def same(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
        sample = new["sample_sha256"]  # which old records lack
        return bool(old.get("header_sha256") == new["header_sha256"] and old.get("sample_sha256", sample) == sample)

    now = checkpoint.identity()
    return len(recorded) == len(now) and all(map(same, recorded, now))


def _sample(file: Path) -> str:
    """SHA-256 of pieces spread evenly over a file, of all of it where it is small."""
    digest = hashlib.sha256()
    try:
        with file.open("rb", buffering=0) as stream:
            span = max(0, file.stat().st_size - PIECES * PIECE)
            for i in range(PIECES):
                stream.seek(i * PIECE + span * i // (PIECES - 1))
                digest.update(stream.read(PIECE))
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def read_json(file: Path, limit: int = 0) -> dict[str, Any]:
    """A JSON object from a file of unknown origin, of 50 MB or `limit` bytes at most, whichever is more."""
    limit = max(limit, JSON_LIMIT)
    try:
        if file.stat().st_size > limit:
            raise InputError(f"{file}: larger than {limit} bytes, which no such file should be")
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not valid JSON ({error}); download it again") from None
    if not isinstance(content, dict):
        raise InputError(f"{file}: expected a JSON object")
    return content


def _locate(path: str, label: str) -> tuple[Path, Snapshot | None]:
    """A local path, or the place in the cache of a repository."""
    try:
        root = local_path(path)
    except InputError as error:
        raise InputError(f"{label}: {error}") from None
    if root.is_dir() or root.is_file():
        if root.is_file() and root.suffix != ".safetensors":
            raise InputError(f"{label}: {root} is no safetensors file; {_convert(root.suffix)}")
        return root, None
    found = hub_id(path)
    if found is None or root.parent.is_dir():
        raise InputError(
            f"{label}: {path} does not exist; give a folder, a .safetensors file, or a Hub name (org/name)"
        )
    try:
        snapshot = find(*found)
    except InputError as error:
        raise InputError(f"{label}: {problem}" for problem in error.problems) from None
    return snapshot.folder, snapshot


def _convert(suffix: str) -> str:
    if suffix in PICKLES:
        return (
            "pickle checkpoints can run code when opened; convert it where you trust it: load it in transformers and "
            "save_pretrained(folder), or safetensors.torch.save_file() its state dict"
        )
    return "expected a folder or a .safetensors file"


def _files(root: Path, snapshot: Snapshot | None) -> tuple[list[Path], dict[str, str] | None, list[str], list[str]]:
    """The files of a folder, the index's weight map if there is one, notes, and problems.

    Where both a single file and an index are there, the single file counts, as in transformers.
    """
    names = {file.name for file in root.iterdir() if file.is_file()} if snapshot is None else set(snapshot.sizes)
    present = [root / name for name in sorted(names) if name.endswith(".safetensors")]
    index: dict[str, str] | None
    problems: list[str]
    for stem in STEMS:
        index_file = root / f"{stem}.safetensors.index.json"
        single = root / f"{stem}.safetensors"
        if single.name in names:
            files, index, problems = [single], None, []
        elif index_file.name in names:
            files, index, problems = _shards(index_file, names)
        else:
            continue
        stray = [file.name for file in present if file not in files]
        notes = [f"ignored {', '.join(stray)}, which do not belong to {stem}"] if stray else []
        return files, index, notes, problems
    if len(present) == 1:
        return present, None, [], []
    pickles = [name for name in sorted(names) if Path(name).suffix in PICKLES]
    where = root if snapshot is None else snapshot.repo
    if present:
        listed = ", ".join(file.name for file in present)
        problem = f"{where}: has several safetensors files ({listed}) and no index; pass one of them"
    elif pickles:
        problem = f"{where}: holds {pickles[0]} and no safetensors; {_convert(Path(pickles[0]).suffix)}"
    else:
        problem = f"{where}: holds no *.safetensors file; give the folder that save_pretrained() wrote"
    return [], None, [], [problem]


def _shards(file: Path, present: set[str]) -> tuple[list[Path], dict[str, str] | None, list[str]]:
    """The shards of an index that are there, the shard of every tensor, and problems.

    Shards are plain names in the index's folder: none leaves it, though they may be links, as in the Hub's cache.
    """
    try:
        weight_map = read_json(file).get("weight_map")
    except InputError as error:
        return [], None, error.problems
    if not isinstance(weight_map, dict) or not weight_map:
        return [], None, [f"{file}: has no weight_map; download it again"]
    names = sorted({str(name) for name in weight_map.values()})
    foreign = [n for n in names if n != Path(n).name or "\\" in n or not n.endswith(".safetensors")]
    files = [file.with_name(name) for name in names if name not in foreign]
    missing = [shard for shard in files if shard.name not in present]
    problems = limited(foreign, lambda n: f"{file}: points to {n!r}, which is no safetensors file of its folder")
    problems += limited(missing, lambda shard: f"{file}: lists {shard.name}, which is missing; download it")
    index = {name: str(shard) for name, shard in weight_map.items()}
    return [shard for shard in files if shard not in missing], index, problems


def _index_problems(root: Path, index: dict[str, str], tensors: dict[str, TensorInfo]) -> list[str]:
    def problem(name: str) -> str:
        where = f"it is in {tensors[name].file.name}" if name in tensors else "it is in none that it lists"
        return f"{root}: the index says that {name!r} is in {index[name]}; {where}: download it again"

    wrong = [name for name, shard in index.items() if name not in tensors or tensors[name].file.name != shard]
    return limited(wrong, problem)
