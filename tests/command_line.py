"""The command line, called in this process."""

from __future__ import annotations

from typer.testing import CliRunner

from fastmerge.cli import app


def run(*arguments: object) -> tuple[int, str, str]:
    """What it ends with: exit code, stdout and stderr."""
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    return done.exit_code, done.stdout, done.stderr
