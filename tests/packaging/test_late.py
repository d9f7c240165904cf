"""Modules that are loaded when something in them is first used."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from folders import family

from fastmerge.late import late


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package whose `slow` says that it was loaded, and whose `user` imports it, as many do."""
    folder = tmp_path / "late_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("loaded = []\nfrom late_package import slow\nfrom . import user\n")
    (folder / "slow.py").write_text("import late_package\nlate_package.loaded.append(__name__)\nvalue = 7\n")
    (folder / "user.py").write_text("import late_package.slow\n\ndef use(): return late_package.slow.value\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    hooks = [*sys.meta_path]
    yield folder
    sys.meta_path[:] = hooks
    for name in [name for name in sys.modules if name.startswith("late_package")]:
        del sys.modules[name]


def test_is_loaded_when_it_is_used(package: Path) -> None:
    late("late_package.slow")
    module = importlib.import_module("late_package")
    assert module.loaded == []
    importlib.import_module("late_package.slow")
    assert module.slow.__name__ == "late_package.slow"
    assert module.slow.__file__ == str(package / "slow.py")
    assert not hasattr(module.slow, "__path__")
    assert module.loaded == [], "no import statement is a use"
    assert module.user.use() == 7
    assert module.loaded == ["late_package.slow"]
    assert type(module.slow) is ModuleType
    assert module.user.use() == 7
    assert len(module.loaded) == 1
    with pytest.raises(AttributeError, match="others"):
        module.slow.others  # noqa: B018
    hooks = len(sys.meta_path)
    late("late_package.slow")
    assert len(sys.meta_path) == hooks, "what is there cannot be late"


def test_is_loaded_before_what_needs_it(package: Path) -> None:
    (package / "needy.py").write_text("import late_package\nseen = [*late_package.loaded]\n")
    late("late_package.slow", needed_by=("late_package.needy",))
    module = importlib.import_module("late_package")
    assert module.loaded == []
    assert importlib.import_module("late_package.needy").seen == ["late_package.slow"]
    assert module.slow.value == 7
    assert len(module.loaded) == 1


def test_others_are_loaded_at_once(package: Path) -> None:
    late("late_package.missing")
    module = importlib.import_module("late_package")
    assert module.loaded == ["late_package.slow"]
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("late_package.missing")


@pytest.mark.parametrize("method", ["linear", "ties", "fr", "tsvm"])
def test_a_merge_by_command_needs_less_of_torch(method: str, tmp_path: Path) -> None:
    """What torch.compile asks for is there all the same."""
    base, models = family(tmp_path, 2)
    named = [f"--model={name}={path}" for name, path in models.items()]
    command = ["fastmerge", "merge", method, "--base", str(base), *named, "--out", str(tmp_path / "out")]
    code = f"""
import sys
from fastmerge.cli import app
sys.argv = {command!r}
try:
    app()
except SystemExit as ended:
    assert not ended.code, ended.code
assert type(sys.modules["torch._meta_registrations"]).__name__ == "_Module"
import torch
print(torch.compile(lambda x: x + 1, backend="aot_eager", fullgraph=True)(torch.ones(2)).tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.endswith("[2.0, 2.0]\n"), done.stderr[-2000:]
