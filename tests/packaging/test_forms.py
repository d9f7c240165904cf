"""Arguments in wrong forms: told by their names, all at once, before anything is done."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fastmerge as fm
from fastmerge import arrays, forms, ops
from fastmerge.errors import InputError

W = torch.ones(2, 2)
STATES = {"a": {"w": W}, "b": {"w": W}}
CALLS: list[tuple[Callable[[], object], str]] = [
    (lambda: fm.merge(None, "b", {"m": "m"}, "out"), "method: expected str or Method, not None"),
    (lambda: fm.merge("linear", 3, {"m": "m"}, "out"), "base: expected str or Path or None, not 3"),
    (lambda: fm.merge("linear", "b", {"m": None}, "out"), "models['m']: expected str or Path, not None"),
    (lambda: fm.merge("linear", "b", {1: "m"}, "out"), "models: key: expected str, not 1"),
    (lambda: fm.merge("linear", "b", {"m": "m"}, b"out"), "out: expected str or Path or None, not a bytes"),
    (
        lambda: fm.merge("linear", "b", {"m": "m"}, "out", tensors=[("a", 3)]),
        "tensors[0][1]: expected {str: …}, not 3",
    ),
    (
        lambda: fm.merge("linear", "b", {"m": "m"}, "out", tensors=["a"]),
        "tensors[0]: expected (str or [str, …], {str: …}), not 'a'",
    ),
    (
        lambda: fm.merge("linear", "b", {"m": "m"}, "out", overwrite="no"),
        "overwrite: expected True or False, not 'no'",
    ),
    (
        lambda: fm.plan("linear", "b", {"m": "m"}, task_specific="head.*"),
        "task_specific: expected [str, …], not 'head.*'; write ['head.*']",
    ),
    (
        lambda: fm.plan("linear", "b", {"m": "m"}, task_specific=(p for p in ["head.*"])),
        "task_specific: expected [str, …], not a generator; make a list of it",
    ),
    (
        lambda: fm.plan("linear", "b", {"m": "m"}, rename={"m": "model."}),
        "rename['m']: expected [(str, str), …], not 'model.'",
    ),
    (
        lambda: fm.plan("linear", "b", {"m": "m"}, task_specific=np.arange(2)),
        "task_specific: expected [str, …], not a ndarray",
    ),
    (lambda: fm.plan(3), "what: expected str or Path or {str: …} or Recipe or MergekitRecipe or Method, not 3"),
    (
        lambda: fm.merge_state_dicts("linear", nn.Linear(2, 2), STATES),
        "base: expected {str: Tensor} or None, not a Linear; pass its state_dict()",
    ),
    (lambda: fm.merge_state_dicts("linear", None, STATES, tensors=3), "tensors: expected [(str or"),
    (lambda: fm.task("artefact", 3, "out"), "name: expected str, not 3"),
    (lambda: fm.verify("merged", samples="all"), "samples: expected a whole number or None, not 'all'"),
    (lambda: fm.diff("a", None), "b: expected str or Path, not None"),
    (lambda: fm.extract_lora("b", "m", "out", rank=8.0), "rank: expected a whole number, not 8.0"),
    (lambda: fm.frank_wolfe({"w": W}, STATES, len, []), "model: expected Module, not a dict"),
    (lambda: fm.frank_wolfe(nn.Linear(2, 2), "DIR", len, []), "pool: expected [str or Path or {str: Tensor}, …] or"),
    (lambda: fm.frank_wolfe(nn.Linear(2, 2), {"a", "b"}, len, []), "not a set; make a list of it"),
    (lambda: fm.frank_wolfe(nn.Linear(2, 2), STATES.values(), len, []), "not a dict_values; make a list of it"),
    (lambda: fm.frank_wolfe(nn.Linear(2, 2), STATES, "loss", []), "loss_fn: expected a function or {str: a function}"),
    (lambda: fm.ada_merging(nn.Linear(2, 2), STATES, [W], steps=True), "steps: expected a whole number, not True"),
    (
        lambda: fm.runtime.load("artefact", rename=[("a", 1)], device=3),
        "device: expected str or device or None, not 3\nrename[0][1]: expected str, not 1",
    ),
    (lambda: fm.runtime.Router.fit(np.ones((2, 2)), ["a", "b"]), "features: expected Tensor, not a ndarray"),
    (lambda: fm.runtime.RoutedModel(3, 4), "task_model: expected TaskModel, not 3\nrouter: expected Router, not 4"),
    (lambda: ops.combine(None, None), "combine: models: expected [Tensor, …], not None"),
    (lambda: ops.combine(W, [W, 3]), "combine: models[1]: expected Tensor, not 3"),
    (lambda: ops.combine(W, [W], {"a": 0.3}), "combine: weights: expected [a number, …] or None, not a dict"),
    (lambda: ops.elect(W, [W], dtype="bfloat16"), "elect: dtype: expected dtype or None, not 'bfloat16'"),
    (lambda: ops.scattering([(W, 3)]), "scattering: jobs[0][1]: expected [Expert, …], not 3"),
]


@pytest.mark.parametrize(("call", "expected"), CALLS, ids=[expected[:40] for _, expected in CALLS])
def test_wrong_forms(call: Callable[[], object], expected: str) -> None:
    with pytest.raises(InputError) as caught:
        call()
    assert expected in str(caught.value)


def test_forms_that_are_right() -> None:
    """Whatever other libraries have for a list, a number, or True."""
    models = {"a": {"w": W}, "b": {"w": W, "_extra_state": 3}}
    assert not forms.form_problems(fm.merge_state_dicts, ("linear", None, models), {"task_specific": ("x",)})
    given: list[dict[str, Any]] = [
        {"models": {"m": Path("m")}.items(), "overwrite": np.bool_(True), "memory": np.int64(3)},
        {"models": [["m", "m"]], "tensors": [(["a", "b"], {"scale": 1})], "progress": print, "resume": 1},
        {"models": zip("a", "b", strict=True), "dtype": torch.float16, "device": torch.device("cpu")},
    ]
    for own in given:
        assert not forms.form_problems(fm.merge, ("linear",), own)
    fit = fm.runtime.Router.fit
    for labels in (["a", "b"], np.array(["a", "b"]), torch.arange(2), [*torch.arange(2)], [*np.arange(2)]):
        assert not forms.form_problems(fit, (W, labels, np.array(["a", "b"])), {})
    data = TensorDataset(W)
    for batches in (data, DataLoader(data), {"a": data, "b": [W]}):
        assert not forms.form_problems(fm.frank_wolfe, (nn.Linear(2, 2), models, len, batches), {})
    assert ops.combine(W, torch.stack([W, W]), np.array([1.0, 2.0]), scale=torch.tensor(0.5)).merged.shape == W.shape  # type: ignore[arg-type]


class Place:
    """A path of another library's."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


def test_what_is_right_is_taken(tmp_path: Path) -> None:
    """Paths that are no Path, and whole numbers that are no int."""
    for name in ("base", "m"):
        save_file({"w": W}, tmp_path / f"{name}.safetensors")
    places: list[Any] = [Place(tmp_path / name) for name in ("base.safetensors", "m.safetensors", "out")]
    fm.merge("linear", places[0], {"m": places[1]}, places[2], memory=np.int64(2**23))  # type: ignore[arg-type]
    for seed in (np.int64(3), torch.tensor(3)):
        given: Any = seed
        assert not fm.verify(places[2], samples=given, seed=given).problems
        fm.runtime.Router.fit(torch.eye(4), [0, 1, 0, 1], seed=given, validation=0.5)
        fm.fisher_information(nn.Linear(2, 2), [W], labels="sample", seed=given)


def test_a_long_list() -> None:
    """Of labels, for one: looked through in no time, and told in part where all of it is wrong."""
    assert len(forms.form_problems(fm.runtime.Router.fit, (W, ["a"]), {"tasks": [3] * 1000})) == forms.LISTED
    with mock.patch.object(forms, "_faults", wraps=forms._faults) as looked:
        assert not forms.form_problems(fm.runtime.Router.fit, (W, [0] * 1000), {})
        assert not forms.form_problems(fm.runtime.Router.fit, (W, ["a"] * 1000), {})
    assert looked.call_count < 20


def test_a_failure_of_another_kind_stays_what_it_is() -> None:
    """Forms are no explanation where they are right."""

    def fails(progress: Callable[[int], None]) -> None:
        raise KeyError("within")

    for wrapped in (forms.well_formed(fails), forms.explained(fails)):
        with pytest.raises(KeyError, match="within"):
            wrapped(print)
        with pytest.raises(TypeError, match="unexpected keyword"):
            wrapped(print, other=3)  # type: ignore[call-arg]


def checked_functions() -> list[Any]:
    found = {}
    for module in pkgutil.walk_packages(fm.__path__, "fastmerge."):
        if not module.name.startswith(("fastmerge.bindings", "fastmerge.kernels", "fastmerge.__main__")):
            own = vars(importlib.import_module(module.name)).values()
            classes = [inner for value in own if isinstance(value, type) for inner in vars(value).values()]
            for function in (*own, *(getattr(value, "__func__", value) for value in classes)):
                code = getattr(function, "__code__", None)
                if code is not None and code.co_filename in (forms.__file__, arrays.__file__):
                    found[function.__module__, function.__qualname__] = function
    return [function for (module, _), function in sorted(found.items()) if hasattr(function, "__wrapped__")]


@pytest.mark.parametrize("loaded", [True, False], ids=["torch", "no torch"])
def test_every_annotation_has_a_meaning(loaded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether torch is loaded, as after an import of the function's module, or not yet."""
    functions = checked_functions()
    assert {"merge", "load", "combine", "Router.fit"} <= {function.__qualname__ for function in functions}
    if not loaded:
        monkeypatch.delitem(sys.modules, "torch")
    for function in functions:
        inner = function
        while hasattr(inner, "__wrapped__"):
            inner = inner.__wrapped__
        for annotation in (text for name, text in inner.__annotations__.items() if name != "return"):
            assert forms._told(forms._meaning(annotation, inner)), function


@pytest.mark.parametrize("kind", ["checked", "arrays"])
def test_a_signature_is_looked_at_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes longer than a small call."""
    looked, signature = list[object](), inspect.signature
    counted = lambda function: (looked.append(function), signature(function))[1]  # noqa: E731
    monkeypatch.setattr(forms, "signature", counted)
    monkeypatch.setattr(arrays.inspect, "signature", counted)

    def add(x: float, y: int = 1) -> float:
        return x + y

    call = forms.well_formed(add) if kind == "checked" else arrays.takes_arrays()(add)
    one = 1.0 if kind == "checked" else np.ones(())
    assert [call(one), call(one, y=2)] == [2, 3]  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected a whole number, not 'z'"):
        call(one, "z")  # type: ignore[arg-type]
    assert len(looked) == (1 if kind == "checked" else 2)  # of which one tells what was wrong
