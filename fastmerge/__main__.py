"""The command `fastmerge`, and `python -m fastmerge`."""

from __future__ import annotations

from .interrupts import end_at_once


def main() -> None:
    """Run the command line; exit codes: 0 done, 1 failed while running, 2 bad input, 130 and 143 interrupted."""
    end_at_once()
    from .cli import main as run

    run()


if __name__ == "__main__":
    main()
