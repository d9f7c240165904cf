"""Settings and fixtures common to all tests."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Shared machines are slow at times; a failure must come again when the test is run again.
settings.register_profile("fastmerge", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("fastmerge")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that take long are left out, unless -m names their mark."""
    unasked = {"aot", "slow"} - set(config.option.markexpr.split())
    left_out = [item for item in items if unasked & {mark.name for mark in item.iter_markers()}]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A folder of its own, in a process that may not look everywhere: root may."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        root = os.geteuid() == 0
        if root:
            os.setresuid(65534, 65534, 0)
        try:
            yield folder
        finally:
            if root:
                os.setresuid(0, 0, 0)
            for path in folder.rglob("*"):
                if path.is_dir():
                    path.chmod(0o777)
