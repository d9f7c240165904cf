"""Cuts found in one reading: a sample tells brackets that most likely hold them, and what is in a bracket is collected.

An element's code is a number of 64 bits, ascending in the order of magnitudes and among equal ones by index, so that no
two are equal: a bracket, from one code to another, is small however many magnitudes are the same, and the code at a cut
does not depend on the order in which codes were collected.

The sample has S elements, about N^⅔, and a bracket up to 4 N / √S. Of 2^30 elements they are 2^20 and 4 million: codes
of 36 MB for each of at most four brackets at a time, 2 % of a bfloat16 model. Of 2^24 elements it is 7 %, of 2^20 16 %.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from . import nvrtc
from .launch import upload
from .magnitude import DTYPES, SOURCE, nan_key

LEAST, MOST = 1 << 20, 1 << 32  # elements of a tensor of which a sample saves work, and that codes can tell apart
ERRORS = 4  # standard errors to both sides: a miss in ten thousand
SLOTS = 4  # brackets looked into in one reading
SPAN = 16_384  # elements of a block of threads, DIGIT bits, codes' LARGEST key: as in magnitude.cu
DIGIT = 8
ROUNDS = 64 // DIGIT
PARTS, PART = 512, 4096  # blocks that share a search, at most, and codes of each, at least
LARGEST = nan_key(False)
LAST = LARGEST << 32 | 0xFFFF_FFFF  # of codes

Slot = tuple[Tensor, int]  # a model and a rank, 1 … N


def cuts(base: Tensor, slots: Sequence[Slot]) -> list[tuple[int, int] | None]:
    """Of each rank the key and one more than the index, or None where the bracket does not hold it, or holds too many.

    Dtypes of up to 32 bits, LEAST to MOST elements. The host waits once.
    """
    if not slots:
        return []
    groups = list(_together(slots))
    found = torch.cat([_search(base, [slots[i] for i in group]) for group in groups]).tolist()
    cuts: list[tuple[int, int] | None] = [None for _ in slots]
    for i, (before, within, room, code) in zip((i for group in groups for i in group), found, strict=True):
        if before < slots[i][1] <= before + within and within <= room:
            cuts[i] = LARGEST - (code >> 32), (code & 0xFFFF_FFFF) + 1
    return cuts


def _together(slots: Sequence[Slot]) -> Iterable[list[int]]:
    """Which are looked for in one reading: a few, of models of one dtype."""
    for dtype in dict.fromkeys(model.dtype for model, _ in slots):
        alike = [i for i, (model, _) in enumerate(slots) if model.dtype == dtype]
        yield from (alike[i : i + SLOTS] for i in range(0, len(alike), SLOTS))


def _search(base: Tensor, slots: Sequence[Slot]) -> Tensor:
    """Elements before the bracket, in it, how many there was room for, and the rank's code: int64 [slots, 4]."""
    n, device, models = base.numel(), base.device, [model for model, _ in slots]
    ranks = upload(torch.tensor([[rank] for _, rank in slots]), device)
    defines = {"BASE": DTYPES[base.dtype], "MODEL": DTYPES[models[0].dtype], "SLOTS": len(slots)}
    addresses = (ctypes.c_void_p * len(slots))(*(model.data_ptr() for model in models))
    samples = _samples(base, addresses, defines)
    ends = [_ends(rank, n, samples.size(1) - 2) for _, rank in slots]
    sizes = torch.full((len(slots),), samples.size(1), device=device)
    limits = upload(torch.tensor([[0, LAST]] * len(slots)), device)
    brackets = _nth(samples, sizes, limits, upload(torch.tensor(ends), device), defines)

    room = max(_room(end - begin, n, samples.size(1) - 2) for begin, end in ends)
    codes = torch.empty(len(slots), room, dtype=torch.int64, device=device)
    found = torch.zeros(len(slots), 2, dtype=torch.int64, device=device)
    given = [base, addresses, ctypes.c_longlong(n), brackets, ctypes.c_longlong(room), found, codes]
    nvrtc.launch(SOURCE, "collect_between", defines, -(-n // SPAN), given, base)

    before, within = found.split(1, 1)
    code = _nth(codes, within.contiguous(), brackets, ranks - 1 - before, defines)
    return torch.cat([found, torch.full_like(code, room), code], 1)


def _samples(base: Tensor, models: ctypes.Array[ctypes.c_void_p], defines: dict[str, int]) -> Tensor:
    """Codes of the same elements of every model, between the least and the largest there can be: [models, S + 2].

    models: their addresses.
    """
    bits = 2 * base.numel().bit_length() // 3
    codes = torch.empty(len(models), (1 << bits) + 2, dtype=torch.int64, device=base.device)
    given = [base, models, ctypes.c_longlong(base.numel()), ctypes.c_int(bits), codes]
    nvrtc.launch(SOURCE, "sample", defines, -(-codes.size(1) // nvrtc.THREADS), given, base)
    return codes


def _ends(rank: int, n: int, size: int) -> tuple[int, int]:
    """Where a rank's bracket begins and ends among the sorted codes of a sample of this size, as _samples has them."""
    share = rank / n
    margin = ERRORS * math.sqrt(size * share * (1 - share)) + ERRORS**2 / 3  # the latter for ranks near the ends
    middle = size * share
    return max(0, math.floor(middle - margin)), min(size + 1, math.ceil(middle + margin) + 1)


def _room(sampled: int, n: int, size: int) -> int:
    """For the codes in a bracket that spans so many of a sample: more than there will be, most likely."""
    return min(n, math.ceil((sampled + 4 * math.sqrt(sampled) + 8) * n / size))


def _nth(codes: Tensor, sizes: Tensor, limits: Tensor, places: Tensor, defines: dict[str, int]) -> Tensor:
    """Of the first sizes[row] codes of each row those of these places in ascending order: int64 [rows, targets].

    limits: int64 [rows, 2], from which to which each row's codes go. Radix select, digit by digit of all at once; the
    host does not wait. A place that there is not gives some number.
    """
    (rows, targets), room = places.shape, codes.size(1)
    searches = places.new_zeros(rows, targets, ROUNDS + 1, 2)
    searches[:, :, 0, 1] = places
    counts = places.new_zeros(rows, targets, ROUNDS, 1 << DIGIT, dtype=torch.int32)
    for number in range(ROUNDS + 1):
        parts = min(PARTS, -(-room // PART)) if number < ROUNDS else 1
        numbers = map(ctypes.c_int, (targets, parts, number))
        given = [codes, ctypes.c_longlong(room), sizes, limits, *numbers, searches, counts]
        nvrtc.launch(SOURCE, "narrow", defines, rows * targets * parts, given, codes)
    return searches[:, :, -1, 0].contiguous()
