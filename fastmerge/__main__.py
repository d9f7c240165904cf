"""The command `fastmerge`, and `python -m fastmerge`."""

from __future__ import annotations

import gc
import os
import sys

from .interrupts import end_at_once

OBJECTS = 100_000  # made between two searches for those that are of no more use


def main() -> None:
    """Run the command line; exit codes: 0 done, 1 failed while running, 2 bad input, 130 and 143 interrupted."""
    end_at_once()
    gc.set_threshold(OBJECTS)  # imports make many, and leave few behind
    from .cli import main as run

    try:
        run()
    except SystemExit as ended:
        if not isinstance(ended.code, int | None):
            raise
        code = ended.code or 0
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except OSError:  # nobody reads on, or there is no room
            code = code or 1
        os._exit(code)  # at once: taking down the interpreter and torch takes half a second


if __name__ == "__main__":
    main()
