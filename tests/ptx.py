"""Runs the PTX of compiled kernels on the CPU, all threads of a grid side by side.

It is what Triton's interpreter leaves out: layouts, shuffles, shared memory, inline PTX, and what LLVM made of it all;
and of CUDA C++ what NVRTC has made of it.
Of PTX only that is known which the kernels are made of; all else is a NotImplementedError, fused multiplication and
addition too. Memory is this process's. A MachineError is raised where an access is not whole in a tensor or not aligned
as a GPU asks for, where no barrier keeps warps apart, and where threads do not reach a barrier or a shuffle together.
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

WARP, MOST_WARPS = 32, 1 << 32
CONFLICTS = {"read": ("write", "add"), "write": ("read", "write", "add"), "add": ("read", "write")}  # of accesses
UNSET = 0x4B5A_4B5A_4B5A_4B5A  # bits of what nobody has set
FIRST, LAST = 1 << 16, 1 << 47  # addresses that a process's memory lies between
UNSIGNED = {1: np.bool_, 8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
SIGNED = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
FLOAT = {32: np.float32, 64: np.float64}
ROUNDING = ("rn", "NaN")
COMPARED = {name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")}
Array = NDArray[Any]  # of a register, or what it holds: a number for each active thread


class MachineError(Exception):
    """What a GPU would stop at, or leave undefined."""


@dataclass(frozen=True)
class Instruction:
    text: str
    guard: str  # the register of its predicate, or nothing
    unless: bool  # whether the predicate has to be false
    name: str
    parts: tuple[str, ...]  # what follows the name after dots, its type last
    operands: tuple[str, ...]

    @property
    def type(self) -> str:
        return self.parts[-1]


@dataclass(frozen=True)
class Kernel:
    parameters: tuple[str, ...]
    widths: dict[str, int]  # bits of registers, by what comes before their numbers
    code: tuple[Instruction, ...]
    labels: dict[str, int]
    shared: dict[str, int]  # where its variables are in shared memory
    shared_bytes: int


@functools.cache
def parse(ptx: str, name: str = "") -> Kernel:
    """The kernel of this name, or the first."""
    entry = re.search(rf"\.entry {name}\b", ptx)
    assert entry
    head, _, body = re.sub(r"//[^\n]*", "", ptx[entry.start() :]).partition("{")
    widths, labels, code = dict[str, int](), dict[str, int](), list[Instruction]()
    shared, shared_bytes = {"global_smem": 0}, 0
    outside = re.findall(r"^\.shared [^;]*", ptx, re.MULTILINE)  # what several functions use
    for line in outside + re.split(r"[;\n]", body[: re.search(r"\n}|func_end", body).start()]):  # type: ignore[union-attr]
        line = re.sub(
            r"^[{}]\s*(?=\.reg|$)", "", line.strip()
        )  # of inline PTX, whose registers have names of their own
        if found := re.match(r"\.reg \.([a-z]+)(\d*)\s+(.*)", line):
            names = re.sub(r"<\d+>", "", found[3])
            widths |= dict.fromkeys(names.replace(" ", "").split(","), int(found[2] or 1))
        elif found := re.match(r"\.shared \.align (\d+) \.[bu](\d+) (\w+)(?:\[(\d+)\])?", line):
            start = -(-shared_bytes // int(found[1])) * int(found[1])
            shared[found[3]], shared_bytes = start, start + int(found[2]) // 8 * int(found[4] or 1)
        elif found := re.match(r"(\$\w+):", line):
            labels[found[1]] = len(code)
        elif found := re.match(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.]*)\s*(.*)", line):
            name, *parts = found[3].split(".")
            operands = tuple(part.strip() for part in re.findall(r"\{[^}]*\}|\[[^]]*\]|[^,\s]+", found[4]))
            code.append(Instruction(line, found[2] or "", bool(found[1]), name, tuple(parts), operands))
    return Kernel(tuple(re.findall(r"\w+_param_\d+", head)), widths, tuple(code), labels, shared, shared_bytes)


def spans(tensors: Iterable[Tensor]) -> tuple[Array, Array]:
    """Where memory of tensors starts, in order, and where it stops; of those that overlap once."""
    found: list[list[int]] = []
    for start, nbytes in sorted({(x.data_ptr(), x.numel() * x.element_size()) for x in tensors}):
        if found and start < found[-1][1]:
            found[-1][1] = max(found[-1][1], start + nbytes)
        else:
            found.append([start, start + nbytes])
    starts, stops = np.array(found, np.uint64).reshape(-1, 2).T
    return starts, stops


@functools.cache
def memory(width: int) -> Array:
    """This process's, in words of `width` bits from FIRST on."""
    word = np.ctypeslib.as_ctypes_type(UNSIGNED[width])
    return np.ctypeslib.as_array((word * ((LAST - FIRST) // (width // 8))).from_address(FIRST))


@functools.cache
def bits(type_: str) -> int:
    """Of a type: of "pred" one, of "f32x2" twice 32."""
    found = re.fullmatch(r"pred|(?:[subf]|bf)(8|16|32|64)(x2)?", type_)
    if not found:
        raise KeyError(type_)
    return int(found[1] or 1) * (2 if found[2] else 1)


def number(raw: Array, type_: str) -> Array:
    """What bits of a type say; of 16-bit floats in float32, of pairs [threads, 2]."""
    width = bits(type_)
    if type_ == "f32x2":
        return raw.view(np.float32).reshape(-1, 2)
    if type_.startswith("bf"):
        return (raw.astype(np.uint32) << 16).view(np.float32)
    if type_.startswith("f"):
        return raw.view(np.float16).astype(np.float32) if width == 16 else raw.view(FLOAT[width])
    return raw.view(SIGNED[width]) if type_.startswith("s") else raw


def narrowed(x: Array, type_: str) -> Array:
    """The bits of floats, rounded to nearest even."""
    if type_ == "bf16":
        raw = x.view(np.uint32)
        rounded = (raw + (0x7FFF + (raw >> 16 & 1))) >> 16
        return np.where(np.isnan(x), 0x7FFF, rounded).astype(np.uint16)
    return x.astype({"f16": np.float16, "f32": np.float32, "f64": np.float64}[type_]).view(UNSIGNED[bits(type_)])


class Grid:
    """The threads of a launch. Those at the same place go on together, the hindmost first."""

    def __init__(
        self,
        kernel: Kernel,
        blocks: Sequence[int],
        threads: int,
        shared: int = 0,
        values: Sequence[int | bytes] = (),
        tensors: Iterable[Tensor] = (),
    ) -> None:
        """blocks: in two dimensions, of `threads` threads and `shared` bytes beside those of variables; values: the
        parameters'; tensors: those whose memory may be accessed."""
        self.kernel, self.blocks, self.threads = kernel, blocks, threads
        self.shared_bytes = shared = -(-max(shared, kernel.shared_bytes) // 8) * 8
        self.count = blocks[0] * blocks[1] * threads
        self.places, self.active = np.zeros(self.count, np.int64), np.arange(self.count)
        thread, block, none = self.active % threads, self.active // threads, np.zeros_like(self.active)
        special = {
            "tid": (thread, none, none),
            "ctaid": (block % blocks[0], block // blocks[0], none),
            "nctaid": (none + blocks[0], none + blocks[1], none + 1),
        }
        self.registers: dict[str, Array] = {
            f"%{name}.{axis}": values.astype(np.uint32)
            for name, of_axes in special.items()
            for axis, values in zip("xyz", of_axes, strict=True)
        }
        self.parameters = dict(zip(kernel.parameters, values, strict=False))  # the last are of Triton's own, and unused
        self.shared = np.zeros(self.count // threads * shared, np.uint8)
        # Of every byte of that, by which warp it was last accessed, and after which of its block's barriers.
        self.accessed = {how: np.zeros(len(self.shared), np.int64) for how in CONFLICTS}
        self.barriers = np.ones(self.count // threads, np.int64)
        self.starts, self.stops = spans(tensors)

    def run(self) -> None:
        end, joins = len(self.kernel.code), {*self.kernel.labels.values()}
        with np.errstate(all="ignore"):
            while (place := int(self.places.min())) < end:
                together = np.flatnonzero(self.places == place)
                while True:
                    self.places[together] = place + 1
                    self._step(self.kernel.code[place], together)
                    place += 1
                    if place in joins or self.kernel.code[place - 1].name in ("bra", "ret"):
                        break

    def _step(self, instruction: Instruction, active: Array) -> None:
        if instruction.guard:
            active = active[self._register(instruction.guard)[active] != instruction.unless]
        self.active, self.now = active, instruction
        if not len(active):
            return
        try:
            getattr(self, f"_{instruction.name}")(*instruction.operands)
        except MachineError as fault:
            raise MachineError(f"{fault}: {instruction.text}") from None
        except (AttributeError, KeyError, TypeError) as error:
            raise NotImplementedError(f"{instruction.text}: {error!r}") from error

    # Operands

    def _get(self, operand: str, type_: str) -> Array:
        """The bits of an operand, unsigned and as many as the type has."""
        width = bits(type_)
        kind = UNSIGNED[width]
        if operand in self.registers or operand[0] == "%" or operand in self.kernel.widths:
            return self._register(operand)[self.active].astype(kind)
        if operand[:2] in ("0f", "0d"):
            value = int(operand[2:], 16)
        elif operand in self.kernel.shared:
            value = self.kernel.shared[operand]
        else:
            value = int(operand.removesuffix("U"), 0) & ((1 << width) - 1)
        return np.full(len(self.active), value, kind)

    def _register(self, name: str) -> Array:
        """Of all threads. What has not been set is no number that would go unnoticed."""
        if name not in self.registers:
            kind = UNSIGNED[self.kernel.widths[re.sub(r"\d+$", "", name)]]
            self.registers[name] = np.full(self.count, UNSET & ((1 << 8 * kind().itemsize) - 1), kind)
        return self.registers[name]

    def _value(self, operand: str, type_: str | None = None) -> Array:
        type_ = type_ or self.now.type
        return number(self._get(operand, type_), type_)

    def _put(self, operand: str, result: Array) -> None:
        """What is narrower than the register is extended, by its sign where it has one."""
        if operand == "_":
            return
        register = self._register(operand)
        if result.dtype.kind == "f":
            pairs = result.ndim == 2
            result = result.view(np.uint64)[:, 0] if pairs else result.view(UNSIGNED[8 * result.itemsize])
        register[self.active] = result.astype(register.dtype)

    # Memory

    def _address(self, operand: str) -> Array:
        name, _, offset = operand.strip("[] ").partition("+")
        address: Array = self._get(name.strip(), "u64") + np.uint64(int(offset or 0) % (1 << 64))
        return address & np.uint64(0xFFFF_FFFF) if "shared" in self.now.parts else address  # which has 32 bits

    def _words(self, addresses: Array, nbytes: int, width: int, how: str) -> tuple[Array, Array]:
        """Memory in words of `width` bits, and which of them the addresses are of, from where `nbytes` are accessed."""
        if (addresses % np.uint64(nbytes)).any():
            raise MachineError("an odd address")
        stops = addresses + np.uint64(nbytes)
        if "shared" in self.now.parts:
            if (stops > self.shared_bytes).any():
                raise MachineError("beyond the shared memory")
            addresses = addresses + (self.active // self.threads * self.shared_bytes).astype(np.uint64)
            for i in range(nbytes):
                self._mark(addresses + np.uint64(i), how)
            return self.shared.view(UNSIGNED[width]), addresses // np.uint64(width // 8)
        assert "global" in self.now.parts, self.now
        own = np.searchsorted(self.starts, addresses, "right") - 1
        if (own < 0).any() or (stops > self.stops[own]).any():
            raise MachineError("beyond the tensors")
        return memory(width), (addresses - np.uint64(FIRST)) // np.uint64(width // 8)

    def _mark(self, places: Array, how: str) -> None:
        """See that since the last barrier no other warp has accessed these bytes in a conflicting way."""
        barrier = self.barriers[self.active // self.threads] * MOST_WARPS
        own = barrier + self.active // WARP
        by_others = {other: (by[places] >= barrier) & (by[places] != own) for other, by in self.accessed.items()}
        if any(by_others[other].any() for other in CONFLICTS[how]):
            raise MachineError("no barrier since another warp was here")
        self.accessed[how][places] = np.where(by_others[how], barrier + MOST_WARPS - 1, own)  # the former: by several

    def _ld(self, to: str, source: str) -> None:
        if self.now.parts[0] == "param":
            name, _, offset = source.strip("[]").partition("+")
            given = self.parameters[name]
            if isinstance(given, bytes):
                given = int.from_bytes(given[int(offset or 0) :][: bits(self.now.type) // 8], "little")
            value = np.full(len(self.active), given, np.int64)
            self._put(to, value.astype(SIGNED[bits(self.now.type)]) if self.now.type[0] == "s" else value)
            return
        places, width = names(to), bits(self.now.type)
        words, first = self._words(self._address(source), len(places) * width // 8, width, "read")
        for i, place in enumerate(places):
            self._put(place, words[first + np.uint64(i)])

    def _st(self, to: str, source: str) -> None:
        places, width = names(source), bits(self.now.type)
        words, first = self._words(self._address(to), len(places) * width // 8, width, "write")
        for i, place in enumerate(places):
            words[first + np.uint64(i)] = self._get(place, self.now.type)

    def _ldmatrix(self, to: str, source: str) -> None:
        """Rows of eight numbers of 16 bits, each from an address of another lane; a lane gets two numbers of each."""
        if self.now.parts[:3] != ("sync", "aligned", "m8n8"):
            raise KeyError(self.now.parts)
        self._whole(WARP)
        rows, lane = self._address(source), self.active % WARP
        for i, place in enumerate(names(to)):
            words, first = self._words(rows[np.arange(len(rows)) - lane + 8 * i + lane // 4], 16, 32, "read")
            self._put(place, words[first + (lane % 4).astype(np.uint64)])

    def _atom(self, to: str, address: str, operand: str) -> None:
        combine = {"add": operator.add, "max": max}[self.now.parts[-2]]
        words, places = self._words(self._address(address), bits(self.now.type) // 8, bits(self.now.type), "add")
        before = np.empty_like(self._get(operand, self.now.type))
        for i, (place, x) in enumerate(zip(places, self._get(operand, self.now.type), strict=True)):
            before[i] = words[place]
            words[place] = combine(words[place], x)
        self._put(to, before)

    # Other threads

    def _whole(self, size: int) -> None:
        """See that of every group of `size` threads all are active that have not ended, or none."""
        group = np.arange(self.count) // size
        living = np.bincount(group[self.places <= len(self.kernel.code)], minlength=group[-1] + 1)
        here = np.bincount(group[self.active], minlength=group[-1] + 1)
        if ((here > 0) & (here < living)).any():
            raise MachineError("not all of its threads come here together")

    def _bar(self, _: str) -> None:
        self._whole(self.threads)
        self.barriers[np.unique(self.active // self.threads)] += 1

    def _shfl(self, to: str, source: str, lane: str, clamp: str, _: str) -> None:
        self._whole(WARP)
        if clamp != "31":
            raise KeyError(clamp)
        own, given = self.active % WARP, self._get(lane, "u32").astype(np.int64)
        other = {"bfly": own ^ given, "idx": given % WARP}[self.now.parts[1]]
        self._put(to, self._register(source)[self.active - own + other])

    def _redux(self, to: str, source: str, _: str) -> None:
        self._whole(WARP)
        operation, start = {
            ("sync", "add", "s32"): (np.add, 0),
            ("sync", "max", "f32"): (np.fmax, np.nan),
        }[self.now.parts]
        value = self._value(source)
        found = np.full(-(-self.count // WARP), start, value.dtype)
        operation.at(found, self.active // WARP, value)
        self._put(to, found[self.active // WARP])

    # Where to go on

    def _bra(self, label: str) -> None:
        self.places[self.active] = self.kernel.labels[label]

    def _ret(self) -> None:
        self.places[self.active] = len(self.kernel.code) + 1

    # Arithmetic

    def _binary(self, operation: Callable[[Array, Array], Array], to: str, a: str, b: str) -> None:
        """Of two of the instruction's type, or of one that is narrower than the other: "f32.bf16"."""
        types = [part for part in self.now.parts if part not in ROUNDING]
        self._put(to, operation(self._value(a, types[-1]), self._value(b, types[0])))

    def _add(self, *operands: str) -> None:
        self._binary(np.add, *operands)

    def _sub(self, *operands: str) -> None:
        self._binary(np.subtract, *operands)

    def _product(self, a: str, b: str) -> Array:
        how = self.now.parts[0]
        if how in ("lo", "rn"):
            return self._value(a) * self._value(b)
        if how != "wide":
            raise KeyError(how)
        wide = {"s": np.int64, "u": np.uint64}[self.now.type[0]]
        return self._value(a).astype(wide) * self._value(b).astype(wide)

    def _mul(self, to: str, a: str, b: str) -> None:
        self._put(to, self._product(a, b))

    def _mad(self, to: str, a: str, b: str, c: str) -> None:
        product = self._product(a, b)
        self._put(to, product + self._get(c, f"u{8 * product.itemsize}").view(product.dtype))

    def _div(self, to: str, a: str, b: str) -> None:
        if self.now.parts[0] == "rn":
            return self._binary(np.divide, to, a, b)
        x, y = self._value(a), self._value(b)
        return self._put(to, (x - np.fmod(x, y)) // y)  # towards zero

    def _rem(self, *operands: str) -> None:
        self._binary(np.fmod, *operands)

    def _extreme(self, larger: bool, to: str, *operands: str) -> None:
        def chosen(x: Array, y: Array) -> Array:
            if x.dtype.kind != "f":
                return np.maximum(x, y) if larger else np.minimum(x, y)
            first = (x > y) | ((x == y) & ~np.signbit(x))  # +0 is larger than −0
            of_numbers = np.where(((first == larger) & (x == x)) | (y != y), x, y)
            neither = ((x != x) | (y != y)) & ("NaN" in self.now.parts)
            return np.where(neither, x.dtype.type(np.nan), of_numbers)

        self._put(to, functools.reduce(chosen, map(self._value, operands)))

    def _max(self, *operands: str) -> None:
        self._extreme(True, *operands)

    def _min(self, *operands: str) -> None:
        self._extreme(False, *operands)

    def _sign(self, change: Callable[[Array, Array], Array], to: str, source: str) -> None:
        """Change the signs' bits, of both halves where there are two."""
        width, pair = bits(self.now.type), self.now.type.endswith("x2")
        sign = 1 << (width // 2 if pair else width) - 1
        signs = UNSIGNED[width](sign | sign << width // 2 if pair else sign)
        self._put(to, change(self._get(source, self.now.type), signs))

    def _abs(self, *operands: str) -> None:
        self._sign(lambda raw, signs: raw & ~signs, *operands)

    def _neg(self, to: str, source: str) -> None:
        if self.now.type[0] == "s":
            return self._put(to, -self._value(source))
        return self._sign(operator.xor, to, source)

    def _cvt(self, to: str, *sources: str) -> None:
        if self.now.type == "f32" and self.now.parts[-2].endswith("x2"):  # the first becomes the upper half
            half = self.now.parts[-2].removesuffix("x2")
            high, low = (narrowed(self._value(x), half).astype(np.uint32) for x in sources)
            return self._put(to, high << 16 | low)
        target, value = self.now.parts[-2], self._value(sources[0])
        if target[0] in "bf":
            whole = value.dtype.kind != "f"
            rounds = whole or bits(target) < bits(self.now.type)
            if rounds != ("rn" in self.now.parts) or (whole and target not in ("f32", "f64")):
                raise KeyError(self.now.parts)
            return self._put(to, value.astype(FLOAT[bits(target)]) if whole else narrowed(value, target))
        if value.dtype.kind == "f":
            raise KeyError(self.now.parts)
        return self._put(to, value.astype((SIGNED if target[0] == "s" else UNSIGNED)[bits(target)]))

    # Bits

    def _cvta(self, to: str, source: str) -> None:
        """An address of all memory is one of global memory."""
        self._put(to, self._get(source, self.now.type))

    def _mov(self, to: str, source: str) -> None:
        if to.startswith("{"):
            whole, parts = self._get(source, self.now.type), names(to)
            width = bits(self.now.type) // len(parts)
            for i, part in enumerate(parts):
                self._put(part, (whole >> whole.dtype.type(i * width)).astype(UNSIGNED[width]))
        elif source.startswith("{"):
            parts = names(source)
            width, kind = bits(self.now.type) // len(parts), UNSIGNED[bits(self.now.type)]
            pieces = [self._get(part, f"b{width}").astype(kind) << kind(i * width) for i, part in enumerate(parts)]
            self._put(to, functools.reduce(operator.or_, pieces))
        else:
            self._put(to, self._get(source, self.now.type))

    def _and(self, *operands: str) -> None:
        self._binary(operator.and_, *operands)

    def _or(self, *operands: str) -> None:
        self._binary(operator.or_, *operands)

    def _xor(self, *operands: str) -> None:
        self._binary(operator.xor, *operands)

    def _not(self, to: str, source: str) -> None:
        self._put(to, ~self._get(source, self.now.type))

    def _shift(self, left: bool, to: str, source: str, by: str) -> None:
        value, width = self._value(source), bits(self.now.type)
        count = self._get(by, "u32")
        near = np.minimum(count, width - 1).astype(value.dtype)
        shifted = value << near if left else value >> near
        gone = (count >= width) & (left or value.dtype.kind == "u")
        self._put(to, np.where(gone, value.dtype.type(0), shifted))

    def _shl(self, *operands: str) -> None:
        self._shift(True, *operands)

    def _shr(self, *operands: str) -> None:
        self._shift(False, *operands)

    def _prmt(self, to: str, low: str, high: str, selector: str) -> None:
        whole = self._get(high, "u64") << np.uint64(32) | self._get(low, "u32").astype(np.uint64)
        chosen, result = self._get(selector, "u32"), np.zeros(len(self.active), np.uint32)
        for i in range(4):
            place = chosen >> np.uint32(4 * i) & np.uint32(15)
            if (place > 7).any():
                raise KeyError("a sign for a byte")
            byte = (whole >> (place.astype(np.uint64) * np.uint64(8))).astype(np.uint8)
            result |= byte.astype(np.uint32) << np.uint32(8 * i)
        self._put(to, result)

    def _popc(self, to: str, source: str) -> None:
        self._put(to, np.bitwise_count(self._get(source, self.now.type)).astype(np.uint32))

    def _bfe(self, to: str, source: str, first: str, count: str) -> None:
        value, start, length = self._value(source), int(first), int(count)
        up = value.dtype.type(bits(self.now.type) - start - length)
        self._put(to, (value << up) >> (up + value.dtype.type(start)))

    def _bfi(self, to: str, source: str, into: str, first: str, count: str) -> None:
        value, kind = self._get(source, self.now.type), UNSIGNED[bits(self.now.type)]
        mask = kind(((1 << int(count)) - 1) << int(first))
        self._put(to, value << kind(int(first)) & mask | self._get(into, self.now.type) & ~mask)

    # Predicates

    def _setp(self, to: str, a: str, b: str) -> None:
        how, x, y = self.now.parts[0], self._value(a), self._value(b)
        unordered = np.isnan(x) | np.isnan(y) if x.dtype.kind == "f" else np.zeros(len(x), np.bool_)
        if how in ("nan", "num"):
            return self._put(to, unordered == (how == "nan"))
        if x.dtype.kind == "f" and how.endswith("u"):
            return self._put(to, COMPARED[how[:-1]](x, y) | unordered)
        return self._put(to, COMPARED[how](x, y) & ~unordered)

    def _selp(self, to: str, a: str, b: str, predicate: str) -> None:
        self._put(to, np.where(self._get(predicate, "pred"), self._get(a, self.now.type), self._get(b, self.now.type)))


def names(operand: str) -> list[str]:
    """The registers of a vector, or of one alone."""
    return [name.strip() for name in operand.strip("{} ").split(",")]
