"""One task's model from an EMR artefact: base + rescaler · mask ⊙ unified, as an ordinary model folder."""

from __future__ import annotations

import time
from pathlib import Path

from torch import Tensor

from .. import __version__, ops
from ..errors import InputError, nearest
from ..formats.checkpoint import Checkpoint, open_checkpoint
from ..formats.emr import RECORD, EmrArtefact
from ..formats.folder import copy_side_files, model_card, write_json
from ..formats.layout import Layout, plan_layout
from ..formats.safetensors import FLOATS, TensorInfo, read_header
from ..recipe.plan import MAX_CHUNK, output_problems
from .identity import backend, digest, input_files, layout_files
from .mapping import Inputs
from .publish import Publication
from .report import Report
from .run_pass import Progress, run_pass
from .stream import Source, Target, Work


def task(
    artefact: str | Path,
    name: str,
    out: str | Path,
    *,
    base: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write the model of task `name` of an EMR artefact to the folder `out`.

    base: where the base model is now, if no longer where the artefact says; it must be the same checkpoint. resume: go
    on where the same call was stopped. Raises InputError before any work where anything does not fit.
    """
    begin = time.perf_counter()
    emr, destination = EmrArtefact(Path(artefact)), Path(out)
    record = emr.record
    if name not in record.tasks:
        raise InputError(f"{artefact}: no task {name!r}{nearest(name, record.tasks)}; it has {', '.join(record.tasks)}")
    origin = open_checkpoint(base or record.base.source, "base")
    own = emr.own_tensors(name)
    _check_base(emr, origin, set(own))
    layout = _layout(emr, origin, own)
    problems = output_problems(
        destination, layout.total_bytes, [Path(artefact), origin.path], overwrite=overwrite, resume=resume
    )
    if problems:
        raise InputError(problems)

    works = _works(emr, origin, own, name, layout)
    files = dict.fromkeys(source.info.file for work in works for source in work.sources)
    headers = {"base": origin.headers, "the artefact": [read_header(f) for f in files if emr.path in f.parents]}
    fingerprint = {"task": name, "fastmerge": __version__, "backend": backend(), RECORD: digest(record.model_dump())}
    fingerprint |= input_files(headers) | layout_files([layout])
    inputs = Inputs([header for own_headers in headers.values() for header in own_headers])
    with Publication(destination, fingerprint, overwrite=overwrite, resume=resume) as publication:
        moved = run_pass(works, layout.files, publication, inputs, MAX_CHUNK, progress)
        inputs.check_unchanged()
        if not publication.published:
            publication.clear_beside(layout.files)
            _write_side_files(emr, origin, name, layout, publication.folder, destination.name)
    return Report(
        out=str(out),
        method="task",
        models=[name],
        tensors=len(works),
        parameters=sum(work.numel for work in works),
        bytes_read=moved.read,
        bytes_written=moved.written,
        seconds=time.perf_counter() - begin,
        backend=backend(),
        notes=publication.notes,
    )


def _write_side_files(emr: EmrArtefact, base: Checkpoint, name: str, layout: Layout, folder: Path, title: str) -> None:
    if layout.index is not None:
        (folder / layout.index_name).write_bytes(layout.index)
    config = emr.config(name)
    if config is not None:
        write_json(folder / "config.json", config)
    copy_side_files(base.path, folder)
    recipe = {"fastmerge": __version__, "task": name, "base": emr.record.base.model_dump(mode="json")}
    card = model_card(title, [f"Task `{name}` of an EMR merge of {len(emr.record.tasks)} models."], recipe)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _check_base(emr: EmrArtefact, base: Checkpoint, own: set[str]) -> None:
    record = emr.record
    problems = []
    if [entry["header_sha256"] for entry in base.identity()] != [e.get("header_sha256") for e in record.base.files]:
        problems.append(
            f"{emr.path}: {base.path} is not the base model it was made with ({record.base.source}); "
            "pass that one with --base"
        )
    for name, info in emr.unified.items():
        stored = base.tensors.get(name)
        if stored is None or stored.shape != info.shape or stored.dtype not in FLOATS:
            problems.append(f"{emr.path}: base has no tensor {name!r} of shape {list(info.shape)}")
    known = {*emr.unified, *record.copied, *record.replaced, *own}
    known |= {alias for aliases in record.aliases.values() for alias in aliases}
    problems += [f"{emr.path}: says nothing of base's tensor {name!r}" for name in base.tensors if name not in known]
    if problems:
        raise InputError(problems)


def _layout(emr: EmrArtefact, base: Checkpoint, own: dict[str, TensorInfo]) -> Layout:
    kept = {name: info for name, info in base.tensors.items() if name not in emr.record.replaced}
    return plan_layout([(t.name, t.dtype, t.shape) for t in (kept | own).values()])


def _works(emr: EmrArtefact, base: Checkpoint, own: dict[str, TensorInfo], name: str, layout: Layout) -> list[Work]:
    row = emr.record.tasks.index(name)
    scale = emr.record.rescalers[row]
    aliased = {alias for aliases in emr.record.aliases.values() for alias in aliases}

    def modulate(_: int, sources: list[Tensor], targets: list[Tensor]) -> None:
        stored, unified, mask = sources
        ops.modulate(stored, unified, mask, scale, out=targets[0])

    def copy(_: int, sources: list[Tensor], targets: list[Tensor]) -> None:
        targets[0].copy_(sources[0])

    works = []
    for info in base.tensors.values():
        if info.name in aliased or info.name not in layout.places or info.name in own:
            continue
        names = (info.name, *emr.record.aliases.get(info.name, ()))
        target = Target(tuple(layout.places[n] for n in names), info.dtype)
        if info.name in emr.unified:
            sources = Source(info), Source(emr.unified[info.name]), Source(emr.masks[info.name], row)
            works.append(Work(info.numel, sources, (target,), modulate))
        else:
            works.append(Work(info.numel, (Source(info),), (target,), copy))
    works += [Work(t.numel, (Source(t),), (Target((layout.places[t.name],), t.dtype),), copy) for t in own.values()]
    return works
