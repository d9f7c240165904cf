from collections.abc import Sequence

# Tensors are given as address and dtype (0 bfloat16, 1 float16, 2 float32, 3 float64); n is the number of elements.

# trim, drop, and address and row stride in bytes of the keep masks; empty and 0 where they do not select
_Kept = tuple[Sequence[tuple[float, int, float, int]], Sequence[tuple[int, int]], int, int]

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
    tall: Sequence[float],  # empty: the masks of equal signs
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
def low_rank(
    n: int,
    base: int,
    base_dtype: int,
    up: int,
    down: int,
    wide: bool,  # up and down are float64
    rank: int,
    columns: int,
    scale: float,
    column: int,
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
    shares: Sequence[float],
    divisor: float,
    scale: float,
    consensus: int,
    as_delta: bool,
    kept: _Kept,
    offset: int,
    out: int,
    out_dtype: int,
) -> int: ...
def blend(
    n: int,
    base: int,
    base_dtype: int,
    models: Sequence[int],
    dtypes: Sequence[int],
    weights: int,
    groups: int,
    inner: int,
    offset: int,
    out: int,
    out_dtype: int,
) -> int: ...
def kept_sums(
    n: int,
    base: int,
    base_dtype: int,
    models: Sequence[int],
    dtypes: Sequence[int],
    kept: _Kept,
    offset: int,
    sums: int,
) -> None: ...
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
def gram(n: int, base: int, base_dtype: int, models: Sequence[int], dtypes: Sequence[int], sums: int) -> None: ...
def row_gram(
    n: int, base: int, base_dtype: int, models: Sequence[int], dtypes: Sequence[int], columns: int, products: int
) -> None: ...
def row_divergence(
    n: int, base: int, base_dtype: int, model: int, dtype: int, columns: int, added: float, found: int
) -> None: ...
def variance(
    n: int, base: int, base_dtype: int, models: Sequence[int], dtypes: Sequence[int], out: int, out_dtype: int
) -> int: ...
def compete(
    n: int,
    base: int,
    base_dtype: int,
    models: Sequence[int],
    dtypes: Sequence[int],
    own: int,
    least: float,
    most: float,
    out: int,
    out_dtype: int,
) -> None: ...
def balance(
    n: int,
    base: int,
    base_dtype: int,
    models: Sequence[int],
    dtypes: Sequence[int],
    limits: Sequence[tuple[float, float, float, float]],  # least, most, low, high
    scale: float,
    out: int,
    out_dtype: int,
) -> int: ...
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

# An expert is (counts, their number, offsets, their number, values).
def extract_largest(
    n: int,
    base: int,
    base_dtype: int,
    models: Sequence[int],
    dtypes: Sequence[int],
    rooms: Sequence[tuple[int, int, int, int, int]],
) -> list[int]: ...
def scatter_add(
    n: int, theta: int, theta_dtype: int, expert: tuple[int, int, int, int, int], values_dtype: int, scale: float
) -> bool: ...
def gather(n: int, theta: int, theta_dtype: int, expert: tuple[int, int, int, int, int]) -> bool: ...
def scatter(n: int, theta: int, theta_dtype: int, experts: Sequence[tuple[int, int, int, int, int]]) -> bool: ...
def isa() -> str: ...
def set_isa(name: str) -> None: ...
def set_threads(threads: int) -> None: ...
def threads() -> int: ...

# n, radices, address of tables; and what it is convolved with, if it is
_Transform = tuple[int, Sequence[int], int]
_Transforms = tuple[int, Sequence[int], int, _Transform | None]

class Filter:
    def __init__(
        self,
        h: int,
        w: int,
        wide: bool,
        first: int,
        columns: int,
        subtract: bool,
        middle: int,
        reaches: int,
        mirrored: int,
        units: int,
        along: tuple[_Transforms, _Transforms],
        across: tuple[_Transforms, _Transforms],
        panel: int,
    ) -> None: ...
    def forward(
        self, base: int, base_dtype: int, models: Sequence[int], dtypes: Sequence[int], weights: Sequence[float]
    ) -> None: ...
    def back(
        self,
        base: int,
        base_dtype: int,
        models: Sequence[int],
        dtypes: Sequence[int],
        weights: Sequence[float],
        scale: float,
        as_delta: bool,
        start: int,
        stop: int,
        out: int,
        out_dtype: int,
        streaming: bool,
    ) -> int: ...
    @staticmethod
    def forward_each(
        filters: Sequence[Filter], base: int, base_dtype: int, models: Sequence[int], dtypes: Sequence[int]
    ) -> None: ...
    @staticmethod
    def back_each(
        filters: Sequence[Filter],
        base: int,
        base_dtype: int,
        models: Sequence[int],
        dtypes: Sequence[int],
        weights: Sequence[float],
        scale: float,
        as_delta: bool,
        start: int,
        stop: int,
        out: int,
        out_dtype: int,
        streaming: bool,
        magnitudes: int,
    ) -> int: ...
    @staticmethod
    def back_apart(
        filters: Sequence[Filter],
        base: int,
        base_dtype: int,
        models: Sequence[int],
        dtypes: Sequence[int],
        outs: Sequence[int],
        streaming: bool,
    ) -> None: ...
    @staticmethod
    def magnitudes(
        filters: Sequence[Filter], base: int, base_dtype: int, models: Sequence[int], dtypes: Sequence[int]
    ) -> list[float]: ...

class Loader:
    def __init__(self, staging: int, nbytes: int, threads: int, device: int, stream: int) -> None: ...
    def begin(self, spans: Sequence[tuple[int, int, int, int]]) -> int: ...
    def wait(self, load: int) -> tuple[int, int]: ...
    def close(self) -> None: ...

class Unloader:
    def __init__(self, staging: int, nbytes: int, threads: int, device: int, stream: int) -> None: ...
    def write(self, extents: Sequence[tuple[int, int, int, int, int, int, int, int]]) -> int: ...

def write_mapped(to: int, source: int, n: int) -> bool: ...
def guard(start: int, n: int) -> int: ...
def lost(guard: int) -> int: ...
def unguard(guard: int) -> None: ...
