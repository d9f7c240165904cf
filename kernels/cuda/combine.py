"""The generalised task arithmetic: selection, weights, vote, division and rounding in one reading."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .kept import Kept, fields, kept_elements, masks, parts, selection, whole_sided
from .launch import Counts, Launch, Row, alike, counted, working
from .numeric import HEAD, divide, is_finite, load, number, place, pointer, store


@triton.jit
def _model(
    row, k, models, start, n, SIDED: tl.constexpr, ELEMENT: tl.constexpr, SHARES: tl.constexpr, TRIM: tl.constexpr,
    DROP: tl.constexpr, KEEP: tl.constexpr, ALIGNED: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    """What is read of model k once for all of a program's elements: its address, weight, share of the divisor, and
    selection."""
    chosen, share = 0, 0
    if TRIM != "none" or DROP != "none" or KEEP:
        chosen = selection(row, k, models, start, n, SIDED, TRIM, DROP, KEEP, WORKING)
    if SHARES:
        share = number(row + HEAD + 2 * models + k, WORKING)
    return pointer(row + HEAD + k, ELEMENT, ALIGNED), number(row + HEAD + models + k, WORKING), share, chosen


@triton.jit
def _term(
    model, theta, offsets, start, n, FULL: tl.constexpr, SIDED: tl.constexpr, BASE: tl.constexpr,
    CONSENSUS: tl.constexpr, TRIM: tl.constexpr, DROP: tl.constexpr, KEEP: tl.constexpr, TILE: tl.constexpr,
    WORKING: tl.constexpr,
):  # fmt: skip
    """A model's term x_k, its vote y_k, and τ_k."""
    address, weight, _, chosen = model
    tau = load(address, offsets, n, FULL, WORKING)
    if BASE is not None:
        tau = tau - theta
    x = weight * tau
    y = tau
    if TRIM != "none" or DROP != "none" or KEEP:
        on = kept_elements(chosen, tau, start, n, FULL, SIDED, TRIM, DROP, KEEP, TILE)
        x, y = tl.where(on, x, 0.0), tl.where(on, y, 0.0)
    if CONSENSUS == "weighted":
        y = x
    if CONSENSUS == "count":
        y = (x > 0).to(WORKING) - (x < 0).to(WORKING)
    return x, y, tau


@triton.jit
def _widest(size, tau):
    """The larger magnitude, NaN if there is one."""
    return tl.maximum(size, tl.abs(tau), propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _larger(a, b):
    return tl.where((tl.abs(b) > tl.abs(a)) | (b != b), b, a)


@triton.jit
def _direction(vote, WORKING: tl.constexpr):
    """The vote's, 1 or −1: a number, since there are but few predicates."""
    return tl.where(vote < 0, -1.0, 1.0).to(WORKING)


@triton.jit
def _unrolled(
    models, theta, offsets, start, n, FULL: tl.constexpr, SIDED: tl.constexpr, K: tl.constexpr, BASE: tl.constexpr,
    CONSENSUS: tl.constexpr, SHARES: tl.constexpr, TRIM: tl.constexpr, DROP: tl.constexpr, KEEP: tl.constexpr,
    TILE: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    """The consensus of K terms that stay in registers, the divisor's total, and the largest |τ_k|."""
    terms, votes, taus = (), (), ()
    for k in tl.static_range(K):
        x, y, tau = _term(models[k], theta, offsets, start, n, FULL, SIDED, BASE, CONSENSUS, TRIM, DROP, KEEP, TILE,
                          WORKING)  # fmt: skip
        terms, votes, taus = terms + (x,), votes + (y,), taus + (tau,)
    delta, total, size = terms[0], tl.zeros([TILE], WORKING), tl.abs(taus[0])
    for k in tl.static_range(1, K):
        size = _widest(size, taus[k])
    if CONSENSUS == "sum":
        for k in tl.static_range(1, K):
            delta = delta + terms[k]
    elif CONSENSUS == "max":
        delta = tl.zeros([TILE], WORKING)
        for k in tl.static_range(K):
            delta = _larger(delta, terms[k])
    else:
        vote = votes[0]
        for k in tl.static_range(1, K):
            vote = vote + votes[k]
        direction = _direction(vote, WORKING)
        for k in tl.static_range(K):
            agrees = direction * votes[k] > 0
            x = tl.where(agrees, terms[k], 0.0)
            delta = x if k == 0 else delta + x
            if SHARES:
                total = total + tl.where(agrees, models[k][2], 0.0)
    return delta, total, size


@triton.jit
def _looped(
    row, models, theta, offsets, start, n, FULL: tl.constexpr, ELEMENT: tl.constexpr, BASE: tl.constexpr,
    CONSENSUS: tl.constexpr, SHARES: tl.constexpr, TRIM: tl.constexpr, DROP: tl.constexpr, KEEP: tl.constexpr,
    ALIGNED: tl.constexpr, TILE: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    """The same of any number of models, which are read once more from the cache where there is a vote."""
    delta, total, vote = tl.zeros([TILE], WORKING), tl.zeros([TILE], WORKING), tl.zeros([TILE], WORKING)
    size = tl.zeros([TILE], WORKING)
    for k in range(models):
        model = _model(row, k, models, start, n, False, ELEMENT, SHARES, TRIM, DROP, KEEP, ALIGNED,
                       WORKING)  # fmt: skip
        x, y, tau = _term(model, theta, offsets, start, n, FULL, False, BASE, CONSENSUS, TRIM, DROP, KEEP, TILE,
                          WORKING)  # fmt: skip
        size = _widest(size, tau)
        if CONSENSUS == "sum":
            delta = tl.where(k > 0, delta + x, x)
        elif CONSENSUS == "max":
            delta = _larger(delta, x)
        else:
            vote = tl.where(k > 0, vote + y, y)
    if CONSENSUS != "sum" and CONSENSUS != "max":
        direction = _direction(vote, WORKING)
        for k in range(models):
            model = _model(row, k, models, start, n, False, ELEMENT, SHARES, TRIM, DROP, KEEP, ALIGNED,
                           WORKING)  # fmt: skip
            x, y, _ = _term(model, theta, offsets, start, n, FULL, False, BASE, CONSENSUS, TRIM, DROP, KEEP, TILE,
                            WORKING)  # fmt: skip
            agrees = direction * y > 0
            x = tl.where(agrees, x, 0.0)
            delta = tl.where(k > 0, delta + x, x)
            if SHARES:
                total = total + tl.where(agrees, model[2], 0.0)
    return delta, total, size


@triton.jit
def _tile(
    row, models, read, divisor, scale, start, n, FULL: tl.constexpr, SIDED: tl.constexpr, K: tl.constexpr,
    MODELS: tl.constexpr, BASE: tl.constexpr, OUT: tl.constexpr, CONSENSUS: tl.constexpr, DIVISOR: tl.constexpr,
    AS_DELTA: tl.constexpr, COUNTED: tl.constexpr, TRIM: tl.constexpr, DROP: tl.constexpr, KEEP: tl.constexpr,
    ALIGNED: tl.constexpr, TILE: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    """Returns which elements are not finite, or have task vectors that are not and may be hidden: int32 [TILE]."""
    offsets = start + tl.arange(0, TILE)
    theta = tl.zeros([TILE], WORKING)
    if BASE is not None:
        theta = load(pointer(row + 3, BASE, ALIGNED), offsets, n, FULL, WORKING)
    shares: tl.constexpr = DIVISOR == "shares"
    if K > 0:
        delta, total, size = _unrolled(read, theta, offsets, start, n, FULL, SIDED, K, BASE, CONSENSUS, shares, TRIM,
                                       DROP, KEEP, TILE, WORKING)  # fmt: skip
    else:
        delta, total, size = _looped(row, models, theta, offsets, start, n, FULL, MODELS[0], BASE, CONSENSUS, shares,
                                     TRIM, DROP, KEEP, ALIGNED, TILE, WORKING)  # fmt: skip
    if shares:
        # Not 0 / 0 where none agrees: what is no normal number is divided by a subroutine, and the whole warp waits.
        some = total != 0
        delta = tl.where(some, divide(tl.where(some, delta, 1.0), tl.where(some, total, 1.0), WORKING), delta)
    if DIVISOR == "number":
        delta = divide(delta, tl.full([TILE], 1.0, WORKING) * divisor, WORKING)
    delta = scale * delta
    if BASE is not None and not AS_DELTA:
        delta = theta + delta
    store(pointer(row + 4, OUT, ALIGNED), offsets, delta, n, FULL)
    bad = tl.zeros([TILE], tl.int32)
    if COUNTED:
        good = is_finite(delta, OUT)
        if TRIM != "none" or DROP != "none" or KEEP or (CONSENSUS != "sum" and CONSENSUS != "max"):
            good = good & is_finite(size, WORKING)
        bad = (good == 0).to(tl.int32)
        if not FULL:
            bad = tl.where(offsets < n, bad, 0)
    return bad


@triton.jit
def _span(
    row, models, start, n, FULL: tl.constexpr, SIDED: tl.constexpr, K: tl.constexpr, MODELS: tl.constexpr,
    BASE: tl.constexpr, OUT: tl.constexpr, CONSENSUS: tl.constexpr, DIVISOR: tl.constexpr, AS_DELTA: tl.constexpr,
    COUNTED: tl.constexpr, TRIM: tl.constexpr, DROP: tl.constexpr, KEEP: tl.constexpr, ALIGNED: tl.constexpr,
    TILE: tl.constexpr, TILES: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    """A program's tiles, of which only the last are not FULL."""
    scale, divisor, read = number(row + 7, WORKING), None, ()
    if DIVISOR == "number":
        divisor = number(row + HEAD + 2 * models, WORKING)
    for k in tl.static_range(K):
        read = read + (_model(row, k, K, start, n, SIDED, MODELS[k], DIVISOR == "shares", TRIM, DROP, KEEP, ALIGNED,
                              WORKING),)  # fmt: skip
    bad = tl.zeros([TILE], tl.int32)
    count = TILES
    if not FULL and TILES > 1:
        count = tl.cdiv(tl.minimum(n - start, TILE * TILES), TILE).to(tl.int32)
    for i in range(count):
        begin = start + tl.cast(i, tl.int64) * TILE
        bad += _tile(row, models, read, divisor, scale, begin, n, FULL, SIDED, K, MODELS, BASE, OUT, CONSENSUS,
                     DIVISOR, AS_DELTA, COUNTED, TRIM, DROP, KEEP, ALIGNED, TILE, WORKING)  # fmt: skip
    if COUNTED:
        found = tl.sum(bad, 0).to(tl.int64)
        tl.atomic_add(row + 2, found, mask=found > 0)


@triton.jit(do_not_specialize=["width", "models"])
def combine_tile(
    table, owners, width, models, K: tl.constexpr, MODELS: tl.constexpr, BASE: tl.constexpr, OUT: tl.constexpr,
    CONSENSUS: tl.constexpr, DIVISOR: tl.constexpr, AS_DELTA: tl.constexpr, COUNTED: tl.constexpr, TRIM: tl.constexpr,
    DROP: tl.constexpr, KEEP: tl.constexpr, ALIGNED: tl.constexpr, SINGLE: tl.constexpr, TILE: tl.constexpr,
    TILES: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    """Row: the count of non-finite elements, in place of the address of sums, base, out, keep, offset, scale; weights
    and divisors."""
    row, start, n = place(table, owners, width, SINGLE, TILE * TILES)
    if (start + TILE * TILES <= n) & whole_sided(row, 0, models, start, K, TRIM, TILE * TILES):
        _span(row, models, start, n, True, True, K, MODELS, BASE, OUT, CONSENSUS, DIVISOR, AS_DELTA, COUNTED, TRIM,
              DROP, KEEP, ALIGNED, TILE, TILES, WORKING)  # fmt: skip
    elif start < n:
        _span(row, models, start, n, False, False, K, MODELS, BASE, OUT, CONSENSUS, DIVISOR, AS_DELTA, COUNTED, TRIM,
              DROP, KEEP, ALIGNED, TILE, TILES, WORKING)  # fmt: skip


def combine(
    base: Tensor | None,
    models: Sequence[Tensor],
    weights: Sequence[float],
    divisor: float | Sequence[float],
    scale: float,
    consensus: str,
    as_delta: bool,
    kept: Kept,
    offset: int,
    out: Tensor,
) -> Callable[[], int]:
    returned = combine_many([(base, models, weights, divisor, scale, consensus, as_delta, kept, offset, out)])
    return lambda: returned()[0]


def combine_many(jobs: Sequence[tuple[Any, ...]]) -> Counts:
    """combine of each job's arguments; those of equal dtypes, K and options take one launch.

    Returns a function that waits for what each returns.
    """
    launches = launch_combine(jobs, count=True)
    return counted([(own, launch.counts.tolist) for own, launch in launches], len(jobs))


def launch_combine(jobs: Sequence[tuple[Any, ...]], count: bool) -> list[tuple[list[int], Launch]]:
    """The launches, and which jobs each has done; they count non-finite elements if asked to."""
    launches = []
    for group in alike(jobs, lambda base, models, *rest: (base, *models, rest[-1]), _options):
        base, models, *_, out = jobs[group.jobs[0]]
        options, rows = dict(group.options), [_row(*jobs[i]) for i in group.jobs]
        launch = Launch(_form(options), rows, group.tensors, models, tiled=True)
        launch(
            combine_tile, len(models), BASE=base if base is None else base.dtype, OUT=out.dtype,
            COUNTED=count, WORKING=working((base, *models)), **options,
        )  # fmt: skip
        launches.append((group.jobs, launch))
    return launches


def _form(options: Mapping[str, str | bool]) -> str:
    """As which the kernel's launch is set: by what takes longest of all that is asked of it."""
    plain = options["CONSENSUS"] == "sum" and options["TRIM"] == "none" and not options["KEEP"]
    if options["DROP"] != "none":
        return "combine, drop" if plain else "combine, drop and vote"
    return "combine" if plain else "combine, trim and vote"


def _options(
    base: Tensor | None, models: Sequence[Tensor], weights: Sequence[float], divisor: float | Sequence[float],
    scale: float, consensus: str, as_delta: bool, kept: Kept, offset: int, out: Tensor,
) -> tuple[tuple[str, str | bool], ...]:  # fmt: skip
    """What the kernel is compiled for, beside dtypes."""
    division = "none" if divisor == 1 else "number" if isinstance(divisor, float) else "shares"
    return ("CONSENSUS", consensus), ("DIVISOR", division), ("AS_DELTA", as_delta), *parts(kept).items()


def _row(
    base: Tensor | None, models: Sequence[Tensor], weights: Sequence[float], divisor: float | Sequence[float],
    scale: float, consensus: str, as_delta: bool, kept: Kept, offset: int, out: Tensor,
) -> Row:  # fmt: skip
    shares = [divisor] * len(models) if isinstance(divisor, float) else divisor
    head = (base, out, masks(kept), offset, scale)
    return Row(out.numel(), head, (models, weights, shares, *fields(kept, len(models))))
