"""The command line. Modules that import torch are loaded by the commands that compute, after preflight."""

from __future__ import annotations

import io
import sys

from ..interrupts import end_at_once
from . import adapters as adapters
from . import frank_wolfe as frank_wolfe
from . import looking as looking
from . import merging as merging
from . import recipes as recipes
from . import routing as routing
from . import spectrum as spectrum
from .app import app as app


def main() -> None:
    """Run the command line; exit codes: 0 done, 1 failed while running, 2 bad input, 130 and 143 stopped."""
    end_at_once()
    if isinstance(sys.stdout, io.TextIOWrapper):  # paths may have bytes that are no text, and encodings lack letters
        sys.stdout.reconfigure(errors="backslashreplace")
    app()
