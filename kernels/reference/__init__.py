"""Plain PyTorch: the definition of every op, and the oracle of every test. Not written for speed."""

from .combine import combine
from .delta_sum import delta_sum
from .elect import elect
from .gather import gather
from .inner_products import inner_products
from .mask_against import mask_against
from .modulate import modulate
from .moments import moments
from .pack_bits import pack_bits
from .scatter import scatter
from .unpack_bits import unpack_bits

__all__ = [
    "combine",
    "delta_sum",
    "elect",
    "gather",
    "inner_products",
    "mask_against",
    "modulate",
    "moments",
    "pack_bits",
    "scatter",
    "unpack_bits",
]
