"""Whole merges by the CUDA backend in Triton's interpreter (TRITON_INTERPRET=1), in the pipeline of GPUs."""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "cuda")]

import on_cpu
import torch
from fastmerge.kernels import cuda
from fastmerge.kernels.cuda import nvrtc
from folders import content, near, read, state, write
from host_device import HostDevice
from interpreted import patched

from fastmerge import dispatch
from fastmerge.engine import merge
from fastmerge.ops import BLOCK
from fastmerge.recipe.plan import plan

SHAPES = {f"layers.{i}.{name}": shape for i in range(3) for name, shape in (("up", (20, 30)), ("norm", (7,)))}
METHODS = {"linear": {}, "task_arithmetic": {"scale": 0.4}, "emr": {}, "dare_ties": {"density": 0.5}, "ties": {}}


def main(folder: Path) -> None:
    warnings.simplefilter("ignore")
    patched()
    nvrtc.launch = on_cpu.launcher()
    dispatch.DEVICES["cuda"] = ("cpu",)
    counts: list[tuple[str, int]] = []
    for op in ("combine", "elect", "highpass_merge"):
        counted(op, counts)
    base = state(0, torch.bfloat16, SHAPES)
    root, models = write(folder / "base", base), {f"m{k}": write(folder / f"m{k}", near(base, k + 1)) for k in range(3)}

    done: list[str] = []

    def merged(method: str, parameters: dict[str, Any]) -> list[Path]:
        """By the CPU's backend, and by the GPU's."""
        outs = []
        done.append(method)
        for backends, devices in ((("native", "reference"), []), (("cuda",), [HostDevice()])):
            dispatch.PREFERENCE["cpu"] = backends
            dispatch.chosen.cache_clear()
            merge.open_devices = lambda _, devices=devices: devices  # type: ignore[assignment, misc]
            outs.append(folder / backends[0] / f"{len(done)}")
            merge.execute(replace(plan(method, root, models, outs[-1], parameters, device="cpu"), chunk=BLOCK))
        return outs

    for method, parameters in METHODS.items():
        files = [{k: v for k, v in content(out).items() if k != "fastmerge.json"} for out in merged(method, parameters)]
        assert files[0] == files[1], method
        (count,) = [count for _, count in counts]
        assert count == len(SHAPES), f"{method}: all tensors in one launch"
        counts.clear()
        print(f"{method}: the bytes of the CPU", flush=True)
    for method, parameters, filters in (
        ("fr", {}, [3]),  # all matrices together
        ("task_arithmetic", {"prefilter": {"cutoff": 0.3}}, [3] * 3),  # all models of each
    ):
        expected, found = map(read, merged(method, parameters))
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=0.01, atol=1e-6)
        assert [count for op, count in counts if op == "highpass_merge"] == filters, method
        counts.clear()
        print(f"{method}: filtered, near the CPU's", flush=True)


def counted(op: str, counts: list[tuple[str, int]]) -> None:
    many = getattr(cuda, f"{op}_many")

    def told(jobs: list[object]) -> object:
        counts.append((op, len(jobs)))
        return many(jobs)

    setattr(cuda, f"{op}_many", told)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
