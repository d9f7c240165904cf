"""Fixtures of several files."""

from __future__ import annotations

from pathlib import Path

import lagging_driver
import pytest


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a driver of CUDA's that lags."""
    return lagging_driver.build(tmp_path_factory.mktemp("driver"))
