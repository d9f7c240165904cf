"""One row of the table: an op's time, the copy's and the other ways', taken in turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping

from harness import Copy, seconds
from pytest_benchmark.fixture import BenchmarkFixture

ROUNDS, PEER_ROUNDS = 7, 2
COPY = Copy()


def measure(
    benchmark: BenchmarkFixture,
    call: Callable[[], object],
    *,
    elements: int,
    moved: int,
    ways: Mapping[str, Callable[[], object]],
    ways_elements: int,
    **row: object,
) -> None:
    """Time `call`, which must move `moved` bytes for its elements, and the other ways of doing the same.

    Each round times the copy, the other ways and the call one after the other in this process, so that a change of the
    machine's mood meets all of them; medians of the rounds' ratios are reported.
    """
    copies: list[float] = []
    others: dict[str, list[float]] = {name: [] for name in ways}
    for run in ways.values():
        run()  # compiles, and touches memory

    def before_each_round() -> None:
        copies.append(COPY.seconds(moved))
        for name, run in ways.items():
            if len(others[name]) < PEER_ROUNDS:
                others[name].append(seconds(run) / ways_elements)

    benchmark.pedantic(call, setup=before_each_round, rounds=ROUNDS, warmup_rounds=1)
    times = benchmark.stats.stats.data
    copies = copies[-len(times) :]
    own = statistics.median(times)
    benchmark.extra_info.update(
        **row,
        nanoseconds_per_element=own / elements * 1e9,
        gigabytes_per_second=moved / own / 1e9,
        copy_gigabytes_per_second=moved / statistics.median(copies) / 1e9,
        of_copy=statistics.median(c / t for c, t in zip(copies, times, strict=True)),
        times_faster={name: min(values) * elements / own for name, values in others.items()},
    )
