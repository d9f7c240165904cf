"""Output files that several threads write."""

from __future__ import annotations

import os
import re
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from fastmerge import dispatch
from fastmerge.engine import slots, writer
from fastmerge.engine.memory_file import MemoryFile
from fastmerge.engine.slots import PAGE, Extent, HostSlot, Segment
from fastmerge.engine.writer import Writer
from fastmerge.formats.layout import FilePlan

PIECE, PIECES = 20 * PAGE + 123, 8  # bytes of a segment, and how many a file has
HEADER = b"8 bytes."
NAMES = ("a", "b", "c")


class Lines:
    """A journal that notes what has been written when a line comes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seen = folder, dict[bytes, dict[str, bytes]]()

    def append(self, lines: list[bytes]) -> None:
        self.seen |= {line: {name: (self.folder / name).read_bytes() for name in NAMES} for line in lines}


def fill(out: Writer) -> tuple[dict[str, bytearray], dict[bytes, dict[str, bytes]]]:
    """Pieces of all files, two files' in every slot, the last ones first, with a line for the journal after each slot:
    what is in the files in the end, and what must be there when a line is written."""
    content = {name: bytearray(HEADER) + bytearray(PIECE * PIECES) for name in NAMES}
    places = [(name, len(HEADER) + PIECE * i) for i in reversed(range(PIECES)) for name in NAMES]
    lines: dict[bytes, dict[str, bytes]] = {}
    for number in range(len(places) // 2):
        slot = out.slot()
        for name, offset in places[2 * number : 2 * number + 2]:
            data = os.urandom(PIECE)
            start, memory = slot.take(PIECE, offset, torch.uint8)
            memory.numpy()[:] = bytearray(data)
            slot.segments.append(Segment(start, PIECE, name, offset))
            content[name][offset : offset + PIECE] = data
        out.put(slot)
        lines[b"%d" % number] = {name: bytes(data) for name, data in content.items()}
        out.finish(b"%d" % number)
    return content, lines


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_files_are_written_side_by_side(threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each by one thread at a time; a line comes when all is there that was put before it."""
    writing, most, both = Counter[int](), [0], [0]
    guard, real = threading.Lock(), slots.pwrite

    def watched(fd: int, data: Any, offset: int) -> None:
        file = os.fstat(fd).st_ino
        with guard:
            writing[file] += 1
            most[0], both[0] = max(most[0], writing[file]), max(both[0], sum(n > 0 for n in writing.values()))
        time.sleep(0.0005)
        real(fd, data, offset)
        with guard:
            writing[file] -= 1

    journal: Any = Lines(tmp_path)
    files = [FilePlan(name, len(HEADER) + PIECE * PIECES, HEADER) for name in NAMES]
    with Writer(tmp_path, files, 4, 3 * PIECE, journal, threads) as out:
        monkeypatch.setattr(slots, "pwrite", watched)
        content, lines = fill(out)
    assert {name: (tmp_path / name).read_bytes() for name in NAMES} == content
    assert most[0] == 1
    assert both[0] == min(threads, len(NAMES))
    assert list(journal.seen) == list(lines)
    for line, there in lines.items():
        for name in NAMES:
            for at in range(len(HEADER), len(there[name]), PIECE):
                piece = there[name][at : at + PIECE]
                assert not any(piece) or journal.seen[line][name][at : at + PIECE] == piece


@pytest.mark.parametrize("able", [True, False], ids=["maps", "system without"])
def test_busy_files_of_memory_are_written_through_maps(
    able: bool, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In pieces, beside the thread that writes to the file; where that cannot be, as other files are."""
    taken: list[bool] = []
    pwrite, write = slots.pwrite, HostSlot.write

    def slow(fd: int, data: Any, offset: int) -> None:
        time.sleep(0.001)
        pwrite(fd, data, offset)

    def watched(slot: HostSlot, extents: list[Extent]) -> bool:
        if not any(extent.map for extent in extents):
            return write(slot, extents)
        taken.append(able and write(slot, extents))
        return taken[-1]

    monkeypatch.setattr(writer, "PIECE", 3 * PAGE)
    journal: Any = Lines(memory)
    files = [FilePlan(name, len(HEADER) + PIECE * PIECES, HEADER) for name in NAMES]
    with Writer(memory, files, 4, 3 * PIECE, journal, 5) as out:
        monkeypatch.setattr(slots, "pwrite", slow)
        monkeypatch.setattr(HostSlot, "write", watched)
        content, lines = fill(out)
    assert {name: (memory / name).read_bytes() for name in NAMES} == content
    assert list(journal.seen) == list(lines)
    release = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
    assert set(taken) == {able and release >= (5, 14) and not isinstance(dispatch.load("native"), str)}


def test_what_cannot_be_mapped_is_written_without(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(descriptor: int, nbytes: int) -> MemoryFile:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(writer, "MemoryFile", refused)
    files = [FilePlan(name, len(HEADER) + PIECE * PIECES, HEADER) for name in NAMES]
    journal: Any = Lines(memory)
    with Writer(memory, files, 4, 3 * PIECE, journal, 5) as out:
        content, _ = fill(out)
    assert {name: (memory / name).read_bytes() for name in NAMES} == content


def test_a_full_file_system_of_memory_is_an_error(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a signal, which touching a map's pages would end the process by."""
    monkeypatch.setattr(writer, "PIECE", 3 * PAGE)
    (small_disk / "filler").write_bytes(bytes(3_000_000))
    journal: Any = Lines(small_disk)
    files = [FilePlan(name, len(HEADER) + PIECE * PIECES, HEADER) for name in NAMES]
    with pytest.raises(OSError, match="No space left"), Writer(small_disk, files, 4, 3 * PIECE, journal, 5) as out:
        fill(out)


def test_an_error_of_one_thread_is_told_and_nothing_after_it_is_journaled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal: Any = Lines(tmp_path)
    files = [FilePlan(name, len(HEADER) + PIECE * PIECES, HEADER) for name in NAMES]
    real, left = slots.pwrite, [20]

    def failing(fd: int, data: Any, offset: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        real(fd, data, offset)

    def run() -> None:
        with Writer(tmp_path, files, 4, 3 * PIECE, journal, 3) as out:
            monkeypatch.setattr(slots, "pwrite", failing)
            fill(out)

    with pytest.raises(OSError, match="No space left"):
        run()
    assert len(journal.seen) < PIECES * len(NAMES) // 2
    assert list(journal.seen) == [b"%d" % i for i in range(len(journal.seen))]


@pytest.mark.parametrize("threads", [1, 4])
def test_what_the_disk_has_lost_is_never_journaled(
    threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system tells once that it could not write, and forgets it: what is finished meanwhile was lost as well."""
    began, go = threading.Event(), threading.Event()

    def failing(_: int) -> None:
        monkeypatch.setattr(writer, "fdatasync", lambda _: None)
        began.set()
        go.wait(60)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(writer, "SYNC_SECONDS", 0.0)
    monkeypatch.setattr(writer, "fdatasync", failing)
    journal: Any = Lines(tmp_path)

    def run() -> None:
        with Writer(tmp_path, [FilePlan(name, PAGE, HEADER) for name in NAMES], 2, PAGE, journal, threads) as out:
            for name in NAMES[:2]:
                slot = out.slot()
                slot.segments.append(Segment(slot.take(9, len(HEADER), torch.uint8)[0], 9, name, len(HEADER)))
                out.put(slot)
            held = [out.slot(), out.slot()]  # so all is written
            out.finish(b"first")
            assert began.wait(60)
            out.finish(b"second")
            go.set()
            for slot in held:
                out.put(slot)

    with pytest.raises(OSError, match="Input/output"):
        run()
    assert not journal.seen


def test_pieces_are_cut_between_huge_pages() -> None:
    """They have all bytes of the segments, in order, and about as many as a thread writes at a time."""
    first = at = 5 * PAGE + 96
    segments = list[Segment]()
    for nbytes in (5, 3 * writer.PIECE + 1234, 7, 0, writer.PIECE - 100, 2 * writer.HUGE):
        segments.append(Segment(at + 1000, nbytes, "a", at))
        at += nbytes
    pieces = writer._pieces(segments)
    flat = [segment for piece in pieces for segment in piece]
    assert sum(segment.nbytes for segment in flat) == at - first
    ends = [first, *(segment.offset + segment.nbytes for segment in flat)]
    assert [(s.start, s.offset) for s in flat] == [(end + 1000, end) for end in ends[:-1]]
    for piece in pieces:
        assert 0 < sum(segment.nbytes for segment in piece) <= writer.PIECE
        assert piece is pieces[-1] or (piece[-1].offset + piece[-1].nbytes) % writer.HUGE == 0
