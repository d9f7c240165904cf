"""Outputs appear whole or not at all, and what was done for one before its merge was stopped is not done again.

The output grows in a hidden folder beside it, `.OUT.partial`, which holds

lock      locked while a merge is at work here
journal   what is finished
content/  the folder that becomes OUT, in one step
old/      the output that was there before, for a moment, where the file system cannot exchange two folders
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from ..errors import InputError, MergeError, ResumableError
from ..formats.layout import FilePlan
from ..recipe.destination import foreign, partial_folder
from .journal import Fingerprint, Journal, fsync_all

ENTRIES = ("lock", "journal", "content", "old", "statistics")
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # renameat2(2) on Linux
FULL = (errno.ENOSPC, errno.EDQUOT)


class Publication:
    """A context in which the output grows in `folder`; left without an error, it is renamed to `out`.

    Left by an interruption or a ResumableError it is kept, to be gone on with, where it is `resumable`; after other
    MergeErrors it is removed.
    `notes` tell what was found. `published`: all was done when the merge was stopped, and `folder` is `out` itself.
    """

    folder: Path
    journal: Journal
    published = False

    def __init__(
        self,
        out: Path,
        fingerprint: Fingerprint,
        *,
        overwrite: bool = False,
        resume: bool = False,
        resumable: bool = True,
    ) -> None:
        self.out = out
        self.partial = partial_folder(out)
        self._fingerprint = fingerprint
        self._overwrite = overwrite
        self._resume = resume
        self._resumable = resumable
        self._lock = -1
        self.notes: list[str] = []

    def __enter__(self) -> Publication:
        try:
            self._lock = self._locked()
            self._open()
        except BaseException as error:
            self._tidy()
            self._unlock()
            if isinstance(error, OSError):
                raise self._told(error) from None
            raise
        return self

    def __exit__(self, failure: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        try:
            self._end(error)
        finally:
            self._unlock()

    def _end(self, error: BaseException | None) -> None:
        lasting = isinstance(error, MergeError) and not isinstance(error, ResumableError)
        kept = self._resumable and not lasting
        try:
            if isinstance(error, OSError):
                raise self._told(error) from None
            if error is None:
                self._publish()
                kept = False
        except OSError as trouble:
            raise self._told(trouble) from None
        finally:
            if not kept:
                shutil.rmtree(self.partial, ignore_errors=True)

    def _tidy(self) -> None:
        """Leave no hidden folder behind in which nothing was done."""
        with suppress(OSError):
            if self._lock >= 0 and os.listdir(self.partial) == ["lock"]:
                shutil.rmtree(self.partial)

    def finished(self, number: int, files: Iterable[FilePlan]) -> dict[int, list[Tensor]]:
        """The sums of the works of a pass, which writes to these files, that were finished before."""
        found = self.journal.finished.get(number, {})
        paths = [(self.folder / file.name, file.size) for file in files] if found else []
        lost = [path for path, size in paths if not path.is_file() or path.stat().st_size != size]
        if lost:
            raise InputError(f"{lost[0]}: is missing, or was changed, since the merge was stopped; leave --resume out")
        return found

    def clear_beside(self, files: Iterable[FilePlan]) -> None:
        """Remove all but these files: a merge stopped while writing what lies beside them may have left half of it."""
        whole = {self.folder / file.name for file in files}
        for path in list(self.folder.rglob("*")):
            if path not in whole and not path.is_dir():
                path.unlink()

    def _locked(self) -> int:
        """The lock file, held until it is closed."""
        path = self.partial / "lock"
        while True:
            self.partial.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # another merge has just finished, and removed the folder
                if self.partial.is_symlink() or not set(os.listdir(self.partial)) <= {*ENTRIES}:
                    raise InputError(f"{self.partial}: is in the way, and not made by fastmerge; move it")
                lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
                if not _take(lock):
                    os.close(lock)
                    raise InputError(
                        f"{self.out}: another merge is writing it; wait for it, or choose another output folder"
                    )
                if path.stat().st_ino == os.fstat(lock).st_ino:
                    return lock
                os.close(lock)

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _open(self) -> None:
        """Find what can be gone on with, or begin anew."""
        self.folder, old = self.partial / "content", self.partial / "old"
        if old.exists() and not self.out.exists():
            old.rename(self.out)
        journal = Journal.read(self.partial / "journal") if self._resume else None
        if journal is not None:
            self._check(journal)
            self.published = self.out.exists() and self.out.stat().st_ino == journal.folder
            if self.published:
                self.folder = self.out
        if self.out.exists() and not self._overwrite and not self.published:
            raise InputError(f"{self.out}: exists already; choose another output folder, or pass --overwrite")
        if journal is not None and self.folder.is_dir():
            self.journal = journal
            self.notes.append("went on with the merge that was stopped")
            return
        if self._resume:
            self.notes.append("there was nothing to resume: began anew")
        for name in ENTRIES[1:]:  # first the journal, which says that the rest is of use
            _remove(self.partial / name)
        self.folder.mkdir()
        self.journal = Journal.begin(self.partial / "journal", self._fingerprint, self.folder.stat().st_ino)
        fsync_all([self.partial, self.partial.parent])

    def _check(self, journal: Journal) -> None:
        differences = journal.differences(self._fingerprint)
        if differences:
            more = f" and {len(differences) - 5} more" if len(differences) > 5 else ""
            raise InputError(
                f"{self.out}: the merge that was stopped is another one: {'; '.join(differences[:5])}{more}; "
                "merge as then, or leave --resume out to begin anew"
            )

    def _publish(self) -> None:
        if self.published:
            return
        fsync_all([*self.folder.rglob("*"), self.folder])
        if self.out.exists():
            if not self._overwrite:
                raise self._failure(f"{self.out}: has appeared while merging; move it")
            other = foreign(self.out, os.listdir(self.folder))
            if other is not None:
                raise self._failure(f"{self.out}: {other!r} has appeared there while merging; move it")
            if not _exchange(self.folder, self.out):
                self.out.rename(self.partial / "old")
                self.folder.rename(self.out)
        else:
            self.folder.rename(self.out)
        fsync_all([self.out.parent])

    def _told(self, error: OSError) -> MergeError:
        if error.errno in FULL:
            return self._failure(f"{self.out}: the disk is full; make room")
        return self._failure(f"{error.filename or self.out}: {error.strerror or error}; mend it")

    def _failure(self, what: str) -> MergeError:
        if self._resumable:
            return ResumableError(f"{what} and go on with --resume")
        return MergeError(f"{what} and start again")


def _take(lock: int) -> bool:
    """Lock a file, unless someone else has it; where the file system knows no locks, no one has."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step, where the system can."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    paths = AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other)
    return rename is not None and rename(*paths, RENAME_EXCHANGE) == 0


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
