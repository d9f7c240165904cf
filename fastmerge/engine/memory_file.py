"""Files that are memory (tmpfs), and maps of them, through which several threads can write to one at once."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from pathlib import Path

TMPFS = 0x01021994  # what statfs(2) calls a file system of memory


class MemoryFile:
    """A map of a whole file. One for all threads: making or removing maps waits for all who take pages."""

    def __init__(self, descriptor: int, nbytes: int) -> None:
        self._map = mmap.mmap(descriptor, nbytes)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def close(self) -> None:
        self._map.close()


def is_memory(folder: Path) -> bool:
    """Whether its files are memory."""
    if sys.platform != "linux":
        return False
    found = ctypes.create_string_buffer(256)  # longer than struct statfs, which begins with the file system's type
    failed = ctypes.CDLL(None).statfs(os.fsencode(folder), found)
    return not failed and int.from_bytes(found.raw[: ctypes.sizeof(ctypes.c_long)], sys.byteorder) == TMPFS
