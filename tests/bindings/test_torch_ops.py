"""torch.ops.fastmerge: the bits of fastmerge.ops, in eager and compiled programs, and gradients where linear."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from fastmerge.bindings import torch_ops as bound
from tensors import BF16, F32, F64, assert_same_bits, make
from torch import Tensor

from fastmerge import ops
from fastmerge.errors import InputError, MergeError

lib = torch.ops.fastmerge
SHAPE = (6, 17)
WEIGHTS = [0.3, 0.5, -0.2]
KEYS = [5, 2**63 + 7, 2**64 - 1]
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")
DEVICES = "cpu", pytest.param("cuda", marks=NO_GPU)


def tensors(dtype: torch.dtype = BF16, shape: Sequence[int] = SHAPE, k: int = 3) -> tuple[Tensor, list[Tensor]]:
    n = torch.Size(shape).numel()
    base, *models = (make(n, dtype, seed, special=False).view(*shape) for seed in range(k + 1))
    return base, models


def signed(keys: Sequence[int]) -> list[int]:
    return [key - 2**64 if key >= 2**63 else key for key in keys]


BASE, MODELS = tensors()
N, W = BASE.numel(), torch.tensor(WEIGHTS, dtype=F64)
ELECTED = ops.elect(BASE, MODELS)
EXPERT = ops.extract_topk(BASE, MODELS[0], 9)
BITS = ops.pack_bits(BASE > 0)
CUTS = ops.kth_magnitude(BASE, MODELS, [[5, N - 20]] * 3)
MAGNITUDES = torch.tensor([[cut.magnitude for cut in row] for row in CUTS], dtype=F64)
INDICES = torch.tensor([[cut.index for cut in row] for row in CUTS])
TABLE = torch.linspace(-1, 1, 9).view(3, 3)
UP, DOWN = torch.linspace(-1, 1, 2 * len(BASE)).view(-1, 2), torch.linspace(0, 2, N // len(BASE) * 2).view(2, -1)
LIMITS = [torch.arange(17) << 27] * 3
KEEP = torch.stack([BITS] * 3)
KEPT = ops.Kept([ops.Window(*row) for row in CUTS], [ops.Drop(key, 1 << 30) for key in KEYS], KEEP)
CHOSEN = (MAGNITUDES, INDICES, KEEP)
BOUNDS = ops.Bounds(0.1, 2.0, 0.5, 3.0)
DROPS = {"drop_keys": signed(KEYS), "drop_thresholds": [1 << 30] * 3, "offset": ops.BLOCK}


def changed(change: Callable[[Tensor], None]) -> Tensor:
    theta = BASE.clone()
    change(theta)
    return theta


# Per operator: its arguments, and what fastmerge.ops gives for the same.
CASES: dict[str, tuple[tuple[Any, ...], dict[str, Any], Callable[[], Any]]] = {
    "elect": ((BASE, MODELS), {"dtype": F32}, lambda: ops.elect(BASE, MODELS, dtype=F32)),
    "modulate": (
        (BASE, ELECTED.unified, BITS, 1.3),
        {},
        lambda: ops.modulate(BASE, ELECTED.unified, BITS, 1.3),
    ),
    "mask_against": (
        (BASE, MODELS, MODELS[1]),
        {"tall": [0.4, 1.0, 2.0]},
        lambda: ops.mask_against(BASE, MODELS, MODELS[1], tall=[0.4, 1.0, 2.0]),
    ),
    "combine": (
        (BASE, MODELS, W, *CHOSEN),
        {"consensus": "weighted", "merge": "mean", "scale": 0.7, **DROPS},
        lambda: ops.combine(
            BASE, MODELS, WEIGHTS, kept=KEPT, consensus="weighted", merge="mean", scale=0.7, offset=ops.BLOCK
        ),
    ),
    "blend": (
        (BASE, MODELS, TABLE),
        {"inner": 5, "offset": 2, "dtype": F32},
        lambda: ops.blend(BASE, MODELS, TABLE, inner=5, offset=2, dtype=F32),
    ),
    "low_rank": (
        (BASE[1:], UP, DOWN, 0.4),
        {"first": N // len(BASE)},
        lambda: ops.low_rank(BASE[1:], UP, DOWN, 0.4, first=N // len(BASE)),
    ),
    "kept_sums": (
        (BASE, MODELS, *CHOSEN),
        DROPS,
        lambda: ops.kept_sums(BASE, MODELS, KEPT, offset=ops.BLOCK),
    ),
    "geodesic": ((BASE, MODELS[0], 0.3), {"dtype": F32}, lambda: ops.geodesic(BASE, MODELS[0], 0.3, dtype=F32)),
    "delta_sum": ((BASE, MODELS, W), {}, lambda: ops.delta_sum(BASE, MODELS, WEIGHTS)),
    "highpass": ((BASE,), {"cutoff": 0.6}, lambda: ops.highpass(BASE, cutoff=0.6)),
    "highpass_merge": (
        (BASE, MODELS, W),
        {"convention": "released", "ratio": 0.5, "as_delta": True},
        lambda: ops.highpass_merge(BASE, MODELS, WEIGHTS, convention="released", ratio=0.5, as_delta=True),
    ),
    "moments": ((BASE, MODELS), {}, lambda: ops.moments(BASE, MODELS)),
    "inner_products": ((BASE, MODELS), {}, lambda: ops.inner_products(BASE, MODELS)),
    "gram": ((BASE, MODELS), {}, lambda: ops.gram(BASE, MODELS)),
    "row_gram": ((BASE, MODELS, 17), {}, lambda: ops.row_gram(BASE, MODELS, 17)),
    "row_divergence": (
        (BASE, MODELS[0], 17),
        {"epsilon": 1e-6},
        lambda: ops.row_divergence(BASE, MODELS[0], 17, epsilon=1e-6),
    ),
    "variance": ((BASE, MODELS), {}, lambda: ops.variance(BASE, MODELS)),
    "compete": (
        (BASE, MODELS, 1),
        {"least": 0.1, "most": 2.0},
        lambda: ops.compete(BASE, MODELS, 1, least=0.1, most=2.0),
    ),
    "balance": (
        (BASE, MODELS, torch.tensor([BOUNDS] * 3, dtype=F64)),
        {"scale": 0.7, "dtype": F32},
        lambda: ops.balance(BASE, MODELS, [BOUNDS] * 3, scale=0.7, dtype=F32),
    ),
    "magnitude_histogram": (
        (BASE, MODELS),
        {"bits": 5, "shift": 20, "prefixes": [30, 31, 29]},
        lambda: ops.magnitude_histogram(BASE, MODELS, bits=5, shift=20, prefixes=[30, 31, 29]),
    ),
    "kth_magnitude": ((BASE, MODELS, [5, N - 20] * 3), {}, lambda: (MAGNITUDES, INDICES)),
    "rank_drop": (
        (BASE, MODELS, 17, signed(KEYS), LIMITS),
        {"stop": N - 3},
        lambda: ops.rank_drop(BASE, MODELS, 17, KEYS, LIMITS, stop=N - 3),
    ),
    "extract_topk": ((BASE, MODELS[0], 9), {"dtype": F32}, lambda: ops.extract_topk(BASE, MODELS[0], 9, dtype=F32)),
    "scatter_add": (
        (BASE.clone(), *EXPERT, 0.4),
        {},
        lambda: changed(lambda theta: ops.scatter_add(theta, EXPERT, 0.4)),
    ),
    "gather": ((BASE, EXPERT.counts, EXPERT.offsets), {}, lambda: ops.gather(BASE, EXPERT)),
    "scatter": (
        (BASE.clone(), *([part] for part in EXPERT)),
        {},
        lambda: changed(lambda theta: ops.scatter(theta, [EXPERT])),
    ),
    "pack_bits": ((BASE > 0,), {}, lambda: ops.pack_bits(BASE > 0)),
    "unpack_bits": ((BITS, SHAPE), {}, lambda: ops.unpack_bits(BITS, SHAPE)),
}


def as_tensors(result: Any) -> list[Tensor]:
    results = list(result) if isinstance(result, tuple) else [result]
    results = [torch.tensor(r) if isinstance(r, int) else r for r in results]
    return [r.view(torch.int16) if r.dtype == torch.uint16 else r for r in results]


def test_the_whole_vocabulary_is_there() -> None:
    """With its signature, and the help of what it is in fastmerge.ops."""
    assert set(CASES) == {*ops.OPS, "geodesic"} == set(bound.__all__)
    for name in bound.__all__:
        signature, _, text = getattr(bound, name).__doc__.partition("\n")
        assert signature.startswith(f"torch.ops.fastmerge.{name}(")
        assert str(inspect.getdoc(getattr(ops, name))) in text


def on(device: str, argument: Any) -> Any:
    """A copy of tensors there; what is none stays."""
    if isinstance(argument, (list, tuple)):
        return type(argument)([on(device, part) for part in argument])
    return argument.to(device, copy=True) if isinstance(argument, Tensor) else argument


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("device", DEVICES)
def test_gives_what_the_op_gives(device: str, name: str) -> None:
    """To the bit; on a GPU about what the CPU gives, where tests/cuda compares to the bit."""
    args, options, expected = CASES[name]
    args = on(device, args)
    result = getattr(lib, name)(*args, **options)
    for i, (a, b) in enumerate(
        zip(as_tensors(args[0] if result is None else result), as_tensors(expected()), strict=True)
    ):
        assert a.device.type == device
        if device == "cpu":
            assert_same_bits(a, b, f"{name} {i}")
        else:
            torch.testing.assert_close(a.cpu(), b)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("device", DEVICES)
def test_is_torchs_kind_of_operator(device: str, name: str) -> None:
    """Schema, fakes and compilation with dynamic shapes, as torch checks them."""
    args, options, _ = CASES[name]
    torch.library.opcheck(getattr(lib, name).default, on(device, args), options)


def inverting(mask: Tensor, right: Callable[[Tensor], Tensor] = ops.pack_bits) -> Tensor:
    packed = right(mask)
    mask.logical_not_()
    return packed


@pytest.mark.parametrize(
    ("name", "function", "wrong", "told"),
    [
        pytest.param("pack_bits", "packed_bytes", lambda _: 5, "Shapes", id="shape"),
        pytest.param("delta_sum", "working_dtype", lambda _: F64, "Dtypes", id="dtype"),
        pytest.param("pack_bits", "pack_bits", inverting, "mutate", id="mutation"),
        pytest.param("low_rank", "low_rank", lambda base, *_, **__: base, "alias", id="alias"),
    ],
)
def test_what_is_not_torchs_kind_is_told(
    name: str, function: str, wrong: Callable[..., Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fakes that differ from what the op gives, and ops that do what their schemas do not say."""
    monkeypatch.setattr(ops, function, wrong)
    with pytest.raises(Exception, match=rf"opcheck.* failed with .*{told}"):
        test_is_torchs_kind_of_operator("cpu", name)


def merge_and_mask(base: Tensor, models: list[Tensor], weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    merged, bad = lib.combine(base, models, weights.softmax(0), scale=0.8)
    unified, masks, magnitude, kept = lib.elect(base, models)
    task = lib.modulate(base, unified, masks[0], 1.5) * 2
    counts, offsets, values = lib.extract_topk(base, models[0], base.numel() // 4)
    theta = merged + 0
    lib.scatter_add(theta, counts, offsets, values)
    return theta, task + lib.highpass(merged - base), bad + (kept / magnitude).sum()


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_to_one_graph(backend: str) -> None:
    """Nothing breaks the graph, other sizes need no other one, and the bits are those of eager."""
    if backend == "inductor" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("inductor needs a C++ compiler")
    compiled = torch.compile(merge_and_mask, fullgraph=True, dynamic=True, backend=backend)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for shape in ((6, 18), (33, 64)):
            base, models = tensors(F32, shape)
            for a, b in zip(compiled(base, models, W), merge_and_mask(base, models, W), strict=True):
                assert_same_bits(a, b, str(shape))


def test_exports() -> None:
    class Merge(torch.nn.Module):
        def forward(self, base: Tensor, models: list[Tensor], weights: Tensor) -> tuple[Tensor, ...]:
            return merge_and_mask(base, models, weights)

    inputs = (*tensors(F32), W)
    exported = torch.export.export(Merge(), inputs).module()
    for a, b in zip(exported(*inputs), merge_and_mask(*inputs), strict=True):
        assert_same_bits(a, b, "exported")


LINEAR: dict[str, Callable[..., Tensor]] = {
    "combine": lambda base, models, w: lib.combine(base, models, w, scale=0.7)[0],
    "combine-normalized": lambda base, models, w: lib.combine(
        base, models, w, normalize=True, factors=[1.0, 0.5, 2.0], as_delta=True
    )[0],
    "combine-without-base": lambda base, models, w: lib.combine(None, [base, *models[:2]], w)[0],
    "combine-ones": lambda base, models, w: lib.combine(base, models)[0] * w.sum(),
    "delta_sum": lambda base, models, w: lib.delta_sum(base, models, w),
    "highpass_merge": lambda base, models, w: lib.highpass_merge(base, models, w, cutoff=0.6, scale=0.7)[0],
    "highpass-released": lambda base, models, w: w.sum() * lib.highpass(base, convention="released", ratio=0.4),
}


@pytest.mark.parametrize("name", LINEAR)
def test_gradients(name: str) -> None:
    """In weights, base and models."""
    base, models = tensors(F64, (3, 5))
    inputs = [t.clone().requires_grad_() for t in (W, base, *models)]
    assert torch.autograd.gradcheck(lambda w, base, *models: LINEAR[name](base, list(models), w), inputs)


@pytest.mark.parametrize("k", [2, 64])
def test_gradients_of_weights_are_summed_in_float64(k: int) -> None:
    """The inner products of 16-bit models whose task vectors are small beside them."""
    base = make(70_001, BF16, 0, special=False)
    models = [(base + make(70_001, BF16, i, special=False) / 64).to(BF16) for i in range(k)]
    weights, g = torch.full((k,), 0.3, requires_grad=True), make(70_001, F32, 99, special=False)
    lib.combine(base, models, weights, dtype=F32)[0].backward(g)
    expected = torch.stack([(g.double() * (m.double() - base.double())).sum() for m in models])
    assert weights.grad is not None
    torch.testing.assert_close(weights.grad, expected.float(), rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


def test_nothing_is_kept_for_gradients_but_inputs() -> None:
    base, models = tensors(F32)
    weights, kept = W.clone().requires_grad_(), []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        lib.combine(base, models, weights)
        lib.highpass_merge(base, models, weights)
    assert {t.data_ptr() for t in kept} == {t.data_ptr() for t in (base, weights, *models)}


def test_weights_are_learnt_in_a_compiled_program() -> None:
    """Gradient descent through the compiled merge finds the weights that made the target."""
    base, models = tensors(F32)
    target = lib.combine(base, models, W)[0]
    weights = torch.zeros(3, dtype=F64, requires_grad=True)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def loss(weights: Tensor) -> Tensor:
        return (lib.combine(base, models, weights)[0] - target).square().mean()

    optimizer = torch.optim.LBFGS([weights], lr=0.5)
    for _ in range(20):

        def closure() -> float:
            optimizer.zero_grad()
            value = loss(weights)
            value.backward()
            return float(value.detach())

        optimizer.step(closure)
    assert torch.allclose(weights, W, atol=1e-5)


def test_votes_and_selections_have_no_gradients() -> None:
    weights = W.clone().requires_grad_()
    for args, options in (((), {"consensus": "max"}), (CHOSEN, {}), ((), DROPS)):
        merged, _ = lib.combine(BASE, MODELS, weights, *args, **options)
        with pytest.raises(InputError, match="no_grad"):
            merged.sum().backward()


def test_problems_are_the_ops() -> None:
    with pytest.raises(InputError, match=r"models\[1\] has shape"):
        lib.elect(BASE, [BASE, BASE[:3]])
    with pytest.raises(InputError, match="as many ranks"):
        lib.kth_magnitude(BASE, MODELS, [1, 2])
    with pytest.raises(InputError, match="cut_indices belong together"):
        lib.combine(BASE, MODELS, W, MAGNITUDES)
    with pytest.raises(InputError, match="drop_thresholds belong together"):
        lib.kept_sums(BASE, MODELS, drop_keys=[1, 2, 3], drop_thresholds=[1])
    with pytest.raises(MergeError, match="NaN leave 5 of the 6"):
        lib.extract_topk(torch.zeros(6), torch.tensor([1, 2, 3, torch.nan, 5, 6.0]), 6)
