"""What `make gpu` and `make tune` run, in Triton's interpreter (TRITON_INTERPRET=1): times and card are stand-ins."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [
    str(ROOT / folder)
    for folder in ("tests", "tests/cuda", "bench", "bench/ops", "bench/merges", "bench/peers", "bench/gpu")
]

import on_cpu
import timing
import torch
from fake_cufft import Cufft, in_place_of_cufft
from fastmerge.kernels.cuda import nvrtc
from interpreted import patched
from offsets import check_offsets

from fastmerge import dispatch, ops


def once(call: Callable[[], object], *_: int) -> float:
    call()
    return 1.0


class Copy:
    def gigabytes_per_second(self) -> float:
        return 1.0


def main(folder: Path) -> None:
    warnings.simplefilter("ignore")
    patched()
    launch, launched = on_cpu.launcher(), set[str]()
    nvrtc.launch = lambda file, kernel, *others: (launched.add(kernel), launch(file, kernel, *others))
    dispatch.DEVICES["cuda"], dispatch.PREFERENCE["cpu"] = ("cpu",), ("cuda", "reference")
    timing.DEVICE, timing.milliseconds, timing.Copy = "cpu", once, Copy  # type: ignore[assignment, misc]
    assert check_offsets(ops.BLOCK + 3, ops.BLOCK, "cpu") > 0

    import roofline
    import small
    import tune
    from calls import calls, implemented

    small.SIZE, small.SHAPES, small.LEAST = 100, ((5, 4), (5, 4), (3, 7)), 100
    small.FORMS = (small.FORMS[0], *small.FORMS[3:])
    for part in range(2):
        small.main(part, 2)
    sources = [nvrtc.source_of(file.name) for file in Path(nvrtc.__file__).parent.glob("*.cu")]
    assert launched == {kernel for source in sources for kernel in on_cpu.KERNEL.findall(source)}
    print("small: done", flush=True)

    roofline.FORMS, roofline.BATCHES = [(torch.bfloat16, 3)], {"two matrices": [(32, 32)] * 2}
    tune.ELEMENTS = 2048
    roofline.elements = lambda *_: 2048
    torch.compile = functools.partial(torch.compile, backend="eager", fullgraph=True)
    rows = list(roofline.rows())
    named = calls(torch.zeros(8), [torch.zeros(8)])
    assert {row["op"] for row in rows} >= {name for name in named if implemented(name, "cuda")}
    assert {row["op"] for row in rows if "torch.compile" in row["times_faster"]} == roofline.COMPILED
    json.dumps(rows)
    roofline.show(rows[0])

    filters = importlib.import_module("filter")
    filters.SHAPES = [(20, 30), (6, 7)]
    fake = Cufft()
    with in_place_of_cufft(fake):
        rows = list(filters.rows())
        assert {plan["n"] for plan in fake.made} >= {(20, 30), (6, 7)}
        assert not any(isinstance(plan["n"], tuple) for plan in fake.plans.values())
    json.dumps(rows)
    filters.show(rows[0])
    print("filter: done", flush=True)

    merge_rehearsed()
    print("merging: done", flush=True)

    run_rehearsed(folder)
    print("run: done", flush=True)

    torch.cuda.get_device_name = lambda *_: "a card"
    tune.TILES, tune.WARPS, tune.UNROLLED = (1024, 2048), (4,), (2,)
    tune.SPANS, tune.OF_SPANS = (4096,), ((512, 2),)
    file = folder / tune.FILE.name
    file.write_text(tune.FILE.read_text())
    tune.main(file)
    assert json.loads(file.read_text()) == json.loads(tune.FILE.read_text()), "no faster, so nothing changes"
    print("tune: done", flush=True)


def run_rehearsed(folder: Path) -> None:
    """All parts, of which one fails, in place of what they run; merges get what is left of the time."""
    import harness

    spec = importlib.util.spec_from_file_location("gpu_run", ROOT / "bench" / "gpu" / "run.py")  # bench has a run too
    assert spec
    assert spec.loader
    run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    part = "import sys; open(sys.argv[1], 'w').write(' '.join(sys.argv[2:])); sys.exit(sys.argv[1].endswith('filter'))"
    kept_apart = [[sys.executable, "-c", part, str(folder / name)] for name in ("memory", "races", "filter")]
    run.commands = lambda: (
        {k: [[sys.executable, "-c", part, str(folder / k)]] for k in run.KINDS} | {"sanitize": kept_apart}
    )
    torch.cuda.is_available, timing.machine, harness.RESULTS = lambda: True, dict, folder
    limit = 10_000  # more than it takes anywhere
    sys.argv = ["run.py", "--limit", str(limit)]
    assert run.main() == 2
    (file,) = folder.glob("gpu-run-*.json")
    kept = json.loads(file.read_text())
    outcomes = {row["part"]: row["outcome"] for row in kept["rows"]}
    assert list(outcomes) == ["conformance", "roofline", "filter", "sanitize", "merging"]
    assert (outcomes["filter"], outcomes["sanitize"], outcomes["merging"]) == ("failed", "failed", "done")
    assert (folder / "memory").exists()
    assert (folder / "races").exists()
    assert 0 < sum(row["seconds"] for row in kept["rows"]) <= kept["total_seconds"]
    assert kept["limit_seconds"] == limit
    option, left = (folder / "merging").read_text().split()
    assert option == "--limit"
    assert 0 < float(left) <= limit - sum(row["seconds"] for row in kept["rows"][:-1]) + 0.1
    assert not (folder / "tune").exists()
    run.commands = lambda: {"sanitize": []}  # as where compute-sanitizer is not installed
    sys.argv = ["run.py", "sanitize"]
    assert run.main() == 0


def merge_rehearsed() -> None:
    """Every row of whole merges, of small models: on this machine's CPU, without page-locked memory."""
    import family
    import merging

    empty = torch.empty
    torch.empty = lambda *shape, pin_memory=False, **options: empty(*shape, **options)
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        setattr(torch.cuda, name, lambda: None)
    torch.cuda.max_memory_reserved = lambda: 5 << 20
    torch.cuda.mem_get_info = lambda: (3 << 20, 10 << 20)
    torch.cuda.Stream, torch.cuda.stream = object, lambda _: contextlib.nullcontext()
    merging.ROUNDS, merging.BY_MERGEKIT, merging.Link.__init__.__defaults__ = 1, (), (1000,)
    family.VOCABULARY = 50
    merging.SIZES = {name: family.Size(16, 24, 8, 4, layers) for name, layers in (("7b", 9), ("13b", 10))}
    dispatch.PREFERENCE["cpu"] = ("native", "reference")
    dispatch.chosen.cache_clear()
    assert not [*merging.rows(-1)], "all is left out"
    held, merging.layers_held = merging.layers_held, lambda *_: 0
    assert not [*merging.rows()], "nothing has room"
    merging.layers_held = held
    rows = list(merging.rows())
    json.dumps(rows)
    merging.show(rows[0])
    assert {(row["gpu_mib"], row["gpu_used_mib"]) for row in rows} == {(4, 6)}, "but for what the floors have"
    assert {(row["size"], row["layers"], row["k"]) for row in rows} == {
        ("7b", 8, 2),
        ("7b", 8, 6),
        ("7b", 8, 3),
        ("7b", 9, 3),
        ("13b", 8, 3),
        ("13b", 10, 3),
    }
    pipeline_rehearsed()
    torch.empty, dispatch.PREFERENCE["cpu"] = empty, ("cuda", "reference")
    dispatch.chosen.cache_clear()


def pipeline_rehearsed() -> None:
    """Stages and settings of small merges, by a device that is the CPU."""
    import pipeline
    from host_device import HostDevice

    from fastmerge.engine import merge

    own = merge.open_devices
    merge.open_devices = lambda _: [HostDevice(0)]
    before = [getattr(holders[0], name) for name, holders, _ in pipeline.SETTINGS]
    pipeline.ROUNDS = 1
    rows = list(pipeline.rows())
    json.dumps(rows)
    for row in rows:
        pipeline.show(row)
    merge.open_devices = own
    assert [getattr(holders[0], name) for name, holders, _ in pipeline.SETTINGS] == before
    stages = {row["name"]: row for row in rows if "calls" in row}
    of_cuda = {"staging memory", "start readers"}
    assert {name for name, *_ in pipeline.STAGES} - set(stages) <= of_cuda | {"end maps"}
    assert {"fastmerge-gpu", "idle"} <= {row["threads"] for row in rows if "threads" in row}
    assert all(0 <= row["begun"] <= row["first_end"] <= row["end"] for row in stages.values())
    assert stages["publish"]["begun"] >= stages["end writers"]["end"]
    assert {(row["setting"], row["value"]) for row in rows if "setting" in row} == {
        (name, value) for name, _, values in pipeline.SETTINGS for value in values
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
