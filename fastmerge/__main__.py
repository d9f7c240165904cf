"""The command `fastmerge`, and `python -m fastmerge`."""

from __future__ import annotations

import errno
import gc
import os
import sys
from contextlib import suppress

from .interrupts import end_at_once

OBJECTS = 100_000  # made between two searches for those that are of no more use
UNPRINTABLE = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EIO)
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # how torch's threads wait for one another


def main() -> None:
    """Run the command line; exit codes: 0 done, 1 failed while running, 2 bad input, 130 and 143 interrupted."""
    end_at_once()
    gc.set_threshold(OBJECTS)  # imports make many, and leave few behind
    # A thread that spins holds the core that those it waits for need, where other programs share them: 15 ms for an
    # operation of 40 µs. Torch's OpenMP runtime reads this once, when it is loaded.
    if not any(name in os.environ for name in WAITING):
        os.environ["OMP_WAIT_POLICY"] = "passive"
    from .cli import main as run

    code = 0
    try:
        try:
            run()
        except SystemExit as ended:
            if not isinstance(ended.code, int | None):
                raise
            code = ended.code or 0
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError as error:
        if error.filename is not None or error.errno not in UNPRINTABLE:
            raise
        code = code or 1  # what has no name is the output
        if error.errno != errno.EPIPE:
            with suppress(OSError):
                os.write(2, f"error: the output cannot be printed: {error.strerror}\n".encode())
    os._exit(code)  # at once: taking down the interpreter and torch takes half a second


if __name__ == "__main__":
    main()
