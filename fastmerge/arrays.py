"""NumPy arrays and whatever speaks DLPack in the place of tensors, without copying them.

Where all arrays of a call are NumPy's, so are its results; else they are tensors, which speak DLPack themselves.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from .errors import InputError
from .forms import explained

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")
WRITTEN = ("out", "sums", "counts", "nonfinite")  # arguments that any function writes into


def takes_arrays(*written: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Lets a function of tensors take arrays too. written: arguments that it changes, beside WRITTEN."""

    def taking(function: Callable[P, R]) -> Callable[P, R]:
        function = explained(function)
        names = functools.cache(lambda: [*inspect.signature(function).parameters])

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if not _any_array((*args, *kwargs.values())):
                return function(*args, **kwargs)
            named = dict(zip(names(), args, strict=False)) | kwargs
            arrays = _Arrays()
            converted = {n: arrays.take(n, value, n in (*WRITTEN, *written)) for n, value in named.items()}
            call_by_name: Callable[..., R] = function
            result = call_by_name(**converted)
            return result if arrays.others else arrays.give(result)

        return call

    return taking


def _any_array(values: Iterable[Any]) -> bool:
    """Whether there are arrays that are no tensors in values, lists and tuples among them."""
    for value in values:  # no generator, which would take twice as long
        nested = isinstance(value, (list, tuple))
        if _any_array(value) if nested else hasattr(value, "__dlpack__") and not hasattr(value, "untyped_storage"):
            return True
    return False


class _Arrays:
    """The arrays of a call, by the tensors that stand for them; `others`: there are some that are not NumPy's."""

    def __init__(self) -> None:
        self.others = False
        self.given: dict[int, tuple[Tensor, np.ndarray[Any, Any]]] = {}

    def take(self, name: str, value: Any, written: bool) -> Any:
        """An argument with tensors in the place of arrays."""
        import numpy as np
        import torch

        if isinstance(value, (list, tuple)):
            parts = [self.take(f"{name}[{i}]", part, written) for i, part in enumerate(value)]
            return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
        if isinstance(value, np.ndarray):
            tensor = _tensor(name, value, written)
            self.given[id(tensor)] = tensor, value
            return tensor
        if hasattr(value, "__dlpack__"):
            self.others = True
            try:
                return value if isinstance(value, torch.Tensor) else torch.utils.dlpack.from_dlpack(value)
            except (BufferError, RuntimeError, TypeError) as error:
                raise InputError(f"{name} cannot be read by DLPack ({error}); pass a tensor") from error
        return value

    def give(self, result: Any) -> Any:
        """A result with arrays in the place of tensors: those given, where the function gives them back."""
        import torch

        if isinstance(result, tuple):
            return type(result)(*map(self.give, result))
        if not isinstance(result, torch.Tensor):
            return result
        if id(result) in self.given:
            return self.given[id(result)][1]
        if result.dtype == torch.bfloat16:
            raise InputError("NumPy has no bfloat16; ask for another dtype, or pass tensors")
        return result.numpy()


def _tensor(name: str, array: np.ndarray[Any, Any], written: bool) -> Tensor:
    """A tensor over an array's memory; a copy where a tensor cannot have its byte order or its strides."""
    import numpy as np
    import torch

    try:
        if array.flags.writeable:
            return torch.from_numpy(array)
        if not written:
            return torch.from_numpy(np.asarray(_Readable(array)))
    except TypeError as error:
        raise InputError(f"{name} is an array of {array.dtype}, which is no dtype of tensors; pass a tensor") from error
    except ValueError:
        if not written:
            return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))
    raise InputError(f"{name} is read-only, or of foreign byte order or negative strides: it cannot be written into")


class _Readable:
    """The memory of a read-only array for a tensor that is not written into, which torch has no other way to say."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        interface = array.__array_interface__
        self.array, self.__array_interface__ = array, interface | {"data": (interface["data"][0], False)}
