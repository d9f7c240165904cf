from collections.abc import Sequence

# Tensors are given as address and dtype (0 bfloat16, 1 float16, 2 float32, 3 float64); n is the number of elements.

def elect(
    n: int,
    base: int,
    base_dtype: int,
    models: Sequence[int],
    dtypes: Sequence[int],
    unified: int,
    unified_dtype: int,
    masks: int,
    sums: int,
) -> None: ...
def mask_against(
    n: int,
    base: int,
    base_dtype: int,
    models: Sequence[int],
    dtypes: Sequence[int],
    merged: int,
    merged_dtype: int,
    masks: int,
    sums: int,
) -> None: ...
def modulate(
    n: int,
    base: int,
    base_dtype: int,
    unified: int,
    unified_dtype: int,
    mask: int,
    scale: float,
    out: int,
    out_dtype: int,
) -> None: ...
def combine(
    n: int,
    base: int,
    base_dtype: int,
    models: Sequence[int],
    dtypes: Sequence[int],
    weights: Sequence[float],
    divisor: float,
    scale: float,
    consensus_max: bool,
    as_delta: bool,
    out: int,
    out_dtype: int,
) -> int: ...
def delta_sum(
    n: int,
    base: int,
    base_dtype: int,
    models: Sequence[int],
    dtypes: Sequence[int],
    weights: Sequence[float],
    out: int,
    out_dtype: int,
) -> None: ...
def moments(
    n: int, base: int, base_dtype: int, models: Sequence[int], dtypes: Sequence[int], sums: int, nonfinite: int
) -> None: ...
def inner_products(n: int, g: int, g_dtype: int, models: Sequence[int], dtypes: Sequence[int], sums: int) -> None: ...
def pack_bits(n: int, mask: int, out: int) -> None: ...
def unpack_bits(n: int, packed: int, out: int) -> None: ...
def magnitude_histogram(
    n: int,
    base: int,
    base_dtype: int,
    models: Sequence[int],
    dtypes: Sequence[int],
    shift: int,
    bits: int,
    prefixes: Sequence[int],
    wide: bool,
    counts: int,
) -> None: ...
def kth_magnitude(
    n: int,
    base: int,
    base_dtype: int,
    models: Sequence[int],
    dtypes: Sequence[int],
    ranks: Sequence[Sequence[int]],
    histogram: int,
    magnitudes: int,
    indices: int,
) -> None: ...
def rank_drop(
    n: int,
    base: int,
    base_dtype: int,
    models: Sequence[int],
    dtypes: Sequence[int],
    columns: int,
    keys: Sequence[int],
    thresholds: Sequence[int],
    start: int,
    stop: int,
    masks: int,
) -> None: ...
def extract_topk(
    n: int,
    base: int,
    base_dtype: int,
    model: int,
    dtype: int,
    magnitude: float,
    index: int,
    counts: int,
    offsets: int,
    values: int,
    values_dtype: int,
    room: int,
) -> int: ...
def scatter_add(
    n: int,
    theta: int,
    theta_dtype: int,
    counts: int,
    offsets: int,
    values: int,
    values_dtype: int,
    scale: float,
) -> None: ...
def isa() -> str: ...
def set_threads(threads: int) -> None: ...
def threads() -> int: ...
