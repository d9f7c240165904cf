"""Repositories of the Hugging Face Hub: their lists and headers say what they hold, before a weight is fetched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from .safetensors import Header, header_of, read_header

SMALL = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]  # configuration, tokenizer, index
FIRST = 100_000  # bytes of a file that are asked for at once; most headers are shorter
TIMEOUT = 30.0  # seconds


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A repository at a commit. `folder` is its place in the cache, `sizes` the files of its top folder; `offline` why
    the Hub was not asked, so that only the cache counts."""

    repo: str
    commit: str
    folder: Path
    sizes: dict[str, int]
    offline: str = ""

    def header(self, file: Path) -> Header:
        """The header of a safetensors file, from the cache or by requests for its first bytes."""
        if file.is_file():
            return read_header(file)
        return header_of(file, self.sizes[file.name], self._reader(file.name))

    def _reader(self, name: str) -> Callable[[int, int], bytes]:
        from huggingface_hub import hf_hub_url, utils

        url = hf_hub_url(self.repo, name, revision=self.commit)
        got = b""

        def read(start: int, stop: int) -> bytes:
            nonlocal got
            if stop > len(got):
                span = f"bytes=0-{max(stop, FIRST) - 1}"
                try:
                    headers = {**utils.build_hf_headers(), "range": span}  # type: ignore[attr-defined]
                    response = utils.get_session().get(url, headers=headers, timeout=TIMEOUT)  # type: ignore[attr-defined]
                    utils.hf_raise_for_status(response)  # type: ignore[attr-defined]
                except Exception as error:  # errors of the Hub's client, and of its HTTP library
                    raise InputError(f"{self.repo}: {name} cannot be read from the Hub: {_first_line(error)}") from None
                got = response.content
            return got[start:stop]

        return read

    def missing(self, files: list[Path]) -> Missing | None:
        """What is yet to be fetched of these files."""
        names = tuple(file.name for file in files if not file.is_file())
        return Missing(self.repo, self.commit, names, sum(self.sizes[name] for name in names)) if names else None


@dataclass(frozen=True, slots=True)
class Missing:
    """Files of a repository that are not in the cache yet."""

    repo: str
    commit: str
    files: tuple[str, ...]
    nbytes: int

    def fetch(self) -> None:
        """Fetch them into the cache; the Hub's client shows its progress."""
        from huggingface_hub import snapshot_download

        try:
            snapshot_download(self.repo, revision=self.commit, allow_patterns=list(self.files))
        except Exception as error:
            raise InputError(f"{self.repo}: cannot be fetched from the Hub: {_first_line(error)}") from None


def find(repo: str, revision: str | None) -> Snapshot:
    """Ask the Hub what a repository holds, and fetch the small files; the cache serves where the Hub cannot be reached.

    Raises InputError where there is no such repository or revision, or it is not for everybody.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    named = repo if revision is None else f"{repo}@{revision}"
    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=TIMEOUT)
        commit = str(info.sha)
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=SMALL))  # whose commit the cache notes
        if folder.name != commit:  # it has moved since
            folder = Path(snapshot_download(repo, revision=commit, allow_patterns=SMALL))
    except RevisionNotFoundError:
        raise InputError(f"{named} is no folder here, and {repo} has no such revision on the Hub") from None
    except RepositoryNotFoundError as error:
        access = "; if it is not for everybody, log in: hf auth login" if _status(error) in (401, 403) else ""
        raise InputError(f"{named} is no folder here, nor a model of the Hub that can be had{access}") from None
    except Exception as error:
        return _cached(repo, revision, named, _first_line(error))
    sizes = {own.rfilename: own.size or 0 for own in info.siblings or () if "/" not in own.rfilename}
    return Snapshot(repo, commit, folder, sizes)


def _cached(repo: str, revision: str | None, named: str, reason: str) -> Snapshot:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=SMALL, local_files_only=True))
    except Exception:
        raise InputError(f"{named} is no folder here, nor could it be had from the Hub: {reason}") from None
    sizes = {file.name: file.stat().st_size for file in folder.iterdir() if file.is_file()}
    return Snapshot(repo, folder.name, folder, sizes, reason)


def _status(error: Any) -> int:
    return int(getattr(getattr(error, "response", None), "status_code", 0))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
