"""The installed package: what it contains, what it leaves alone, how it starts, and which way imports run."""

from __future__ import annotations

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastmerge
from fastmerge import dispatch, methods
from fastmerge.__main__ import WAITING

ROOT = Path(fastmerge.__file__).parent
FASTMERGE = str(Path(sys.executable).with_name("fastmerge"))
# What a module may import: its own room, and those further down.
ROOMS = {
    "__main__": -2,
    "cli": -1,
    "bindings": -1,
    "informed": 0,
    "fw": 1,
    "doctor": 2,
    "runtime": 2,
    "engine": 2,
    "recipe": 3,
    "formats": 4,
    "methods": 4,
    "ops": 5,
    "arrays": 6,
    "cutoff": 6,
    "forms": 7,
    "gpus": 5,
    "targets": 6,
    "dispatch": 6,
    "batching": 7,
    "kernels": 7,
    "interrupts": 8,
    "late": 8,
    "dense": 8,
    "errors": 8,
    "weights": 8,
}


def in_a_process(code: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def imports(file: Path) -> set[str]:
    """The rooms of fastmerge that a file imports, wherever in it."""
    package = ("fastmerge", *file.relative_to(ROOT).parts[:-1])
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (start, node.module) if part)
            names = [f"{module}.{alias.name}" for alias in node.names]
        found |= {
            parts[1] for parts in (name.split(".") for name in names) if parts[0] == "fastmerge" and len(parts) > 1
        }
    return {name for name in found if name in ROOMS}


@pytest.mark.parametrize("file", sorted(ROOT.rglob("*.py")), ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_run_one_way(file: Path) -> None:
    """No module imports a room above its own; kernels import nothing of ours."""
    room = file.relative_to(ROOT).parts[0].removesuffix(".py")
    if room == "__init__":
        return  # the public names, loaded when asked for
    assert room in ROOMS, f"{room} has no place in the order of imports"
    for imported in imports(file):
        assert imported == room or ROOMS[imported] > ROOMS[room], f"{room} imports {imported}"
        assert room != "kernels" or imported == "kernels"


def test_no_kernels_at_top_level(tmp_path: Path) -> None:
    """A package called kernels belongs to another project: ours must not be importable under that name."""
    code = "import importlib.util as u; s = u.find_spec('kernels'); print(s and s.origin)"
    assert "fastmerge" not in in_a_process(code, tmp_path)
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not (ROOT / "bindings" / "__init__.py").exists()


def test_native_is_built_where_it_can_be() -> None:
    """Falling back to the reference is for machines without a compiler alone."""
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("no C++ compiler here")
    assert dispatch.why_not("elect", "native", "cpu") is None


def test_typed() -> None:
    assert (ROOT / "py.typed").is_file()


def test_types_of_methods(tmp_path: Path) -> None:
    """Parameters that have a default need not be given, of fastmerge's methods as of one's own."""
    declared = [methods.get(name) for name in methods.names()]
    (tmp_path / "own.py").write_text(
        "import torch\nimport fastmerge as fm\nfrom fastmerge.methods import Method, TaskVectorMethod\n"
        + "".join(f"import {one.__module__}\n{one.__module__}.{one.__name__}()\n" for one in declared)
        + "fm.methods.ties.TIES(density=0.2)\nfm.methods.ties.TIES(density={'a': 0.2}, scope='global')\n"
        "fm.Recipe(method='linear', models={}, seed=3)\n"
        "class Own(Method):\n    strength: float = 1.0\n"
        "class Vectors(TaskVectorMethod):\n    strength: float = 1.0\n"
        "fm.merge(Own(), 'base', {'a': 'b'}, 'out', dtype=torch.float16, device=torch.device('cpu'))\n"
        "fm.plan(Vectors(strength=2.0), 'base', {'a': 'b'}, dtype='float16')\n"
    )
    command = [sys.executable, "-m", "mypy", "--strict", "own.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_starts_without_torch(tmp_path: Path) -> None:
    """Importing fastmerge, its command line and preflight loads neither torch, numpy nor what is optional."""
    late = ("torch", "numpy", "huggingface_hub", "matplotlib", "transformers")
    code = (
        "import sys, fastmerge, fastmerge.cli, fastmerge.recipe.plan, fastmerge.methods as m; "
        f"[m.get(n) for n in m.names()]; print([n for n in {late} if n in sys.modules])"
    )
    assert in_a_process(code, tmp_path) == "[]"


@pytest.mark.parametrize(
    ("chosen", "spins"),
    [({}, 0), ({"GOMP_SPINCOUNT": "7"}, 7), ({"OMP_WAIT_POLICY": "active"}, 30_000_000_000)],
    ids=["unset", "count", "policy"],
)
def test_threads_that_wait_sleep(chosen: dict[str, str], spins: int, tmp_path: Path) -> None:
    """Torch's OpenMP runtime is told so before it is loaded, where the user has not said otherwise."""
    kept = {name: value for name, value in os.environ.items() if name not in WAITING}
    env = kept | chosen | {"OMP_DISPLAY_ENV": "verbose"}
    command = [sys.executable, "-m", "fastmerge", "doctor"]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr


def test_help_and_version(tmp_path: Path) -> None:
    for arguments, expected in (
        (["--help"], "doctor"),
        (["--version"], fastmerge.__version__),
        (["merge", "--help"], "--base"),
    ):
        done = subprocess.run([FASTMERGE, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert expected in done.stdout


def test_doctor_says_why_native_is_missing(tmp_path: Path) -> None:
    """Without the extension, the reference serves and doctor gives the reason."""
    copy = tmp_path / "fastmerge"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns("_native*.so"))
    code = (
        "from fastmerge.doctor import examine; from fastmerge import ops; import torch; "
        "print(examine()['backends']['native']); "
        "t = torch.ones(3); print(ops.combine(t, [t]).merged.tolist())"
    )
    said = in_a_process(code, tmp_path)
    assert "C++ extension was not built" in said
    assert "[1.0, 1.0, 1.0]" in said


def test_version_is_one() -> None:
    from importlib.metadata import version

    assert version("fastmerge") == fastmerge.__version__
    assert importlib.util.find_spec("fastmerge") is not None
