"""Typed errors. Everything fastmerge raises on purpose derives from FastmergeError."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any, TypeVar

T = TypeVar("T")


class FastmergeError(Exception):
    """Base of all errors; `exit_code` is what the command line ends with."""

    exit_code = 1


class InputError(FastmergeError):
    """Bad input, found before any work started. Carries every problem found, not only the first."""

    exit_code = 2

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class MergeError(FastmergeError):
    """The merge failed while running, such as at a non-finite weight; no output is left."""


class ResumableError(MergeError):
    """The merge was cut short by what passes, such as a full disk; no output is left, and it can be resumed."""


class VerifyError(MergeError):
    """A merged folder is not what its record says, or its inputs are not; carries every difference."""

    def __init__(self, verification: Any) -> None:
        self.verification = verification
        self.problems: list[str] = verification.problems
        super().__init__("\n".join(self.problems))


class BackendError(FastmergeError):
    """A backend that was asked for by name cannot do what was asked."""

    exit_code = 2


def nearest(name: str, known: Iterable[str]) -> str:
    """A clause proposing the known name most like `name`, or an empty string."""
    match = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""


def attempt(problems: list[str], call: Callable[[], T]) -> T | None:
    """What a call returns; where it is bad input, its problems join the others, and there is None."""
    try:
        return call()
    except InputError as error:
        problems += error.problems
        return None
