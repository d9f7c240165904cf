"""The objectives against torch's own, on what models return and batches are like."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fastmerge as fm
from fastmerge.errors import InputError, MergeError
from fastmerge.fw import causal_lm, cross_entropy, entropy
from fastmerge.fw.objective import Objective


class Table(nn.Module):
    """Logits of ids, as a Hugging Face model returns them."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.randn(7, 7, generator=torch.Generator().manual_seed(0)))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        return SimpleNamespace(logits=self.logits[input_ids])


IDS = torch.tensor([[1, 2, 3, 0], [4, 5, 6, 2]])
MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])


def test_causal_lm() -> None:
    """Every token but the first and the padding, given the one before."""
    model = Table()
    pairs = [(1, 2), (2, 3), (4, 5), (5, 6), (6, 2)]
    expected = -torch.stack([model.logits.log_softmax(1)[a, b] for a, b in pairs]).mean()
    assert torch.allclose(causal_lm(model, {"input_ids": IDS, "attention_mask": MASK}), expected)
    labels = IDS.masked_fill(IDS != 2, -100)
    two = -torch.stack([model.logits.log_softmax(1)[a, b] for a, b in [(1, 2), (6, 2)]]).mean()
    assert torch.allclose(causal_lm(model, {"input_ids": IDS, "labels": labels}), two)


def test_classification_and_entropy() -> None:
    linear, x, y = nn.Linear(3, 4), torch.randn(5, 3), torch.tensor([0, 1, 2, 3, -100])
    expected = functional.cross_entropy(linear(x), y)
    assert torch.equal(cross_entropy(linear, (x, y)), expected)
    assert torch.equal(cross_entropy(linear, {"input": x, "labels": y}), expected)
    p = linear(x).softmax(1)
    for batch in (x, (x, y), {"input": x, "labels": y}):
        assert torch.allclose(entropy(linear, batch), -(p * p.log()).sum(1).mean())
    certain = nn.Linear(1, 2)
    certain.weight.data = torch.tensor([[1000.0], [-1000.0]])
    assert entropy(certain, torch.ones(1, 1)).item() == 0  # where p is 0, p log p is not NaN


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_losses_are_wide(dtype: torch.dtype) -> None:
    linear = nn.Linear(3, 4).to(dtype)
    batch = torch.randn(5, 3, dtype=dtype), torch.zeros(5, dtype=torch.long)
    assert cross_entropy(linear, batch).dtype == torch.promote_types(dtype, torch.float32)


def test_mixtures() -> None:
    """Σ weight · mean over batches, weights made to sum to one, each task with its own loss."""
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(2.0)
    losses = {"a": lambda m, b: (m.weight * b).sum(), "b": lambda m, b: (m.weight - b).square().sum()}
    objective = Objective(losses, {"a": [1.0, 3.0], "b": [5.0]}, {"a": 3})
    found = objective.losses(model)
    assert found == {"a": 4.0, "b": 9.0}
    assert objective.value(found) == 0.75 * 4 + 0.25 * 9


POOL = [{"weight": torch.ones(1, 1)}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": []}, "batches of all: are empty"),
        ({"batches": (b for b in ()), "steps": 1}, "gone through once"),
        ({"batches": {"a": [1], "b": []}}, "batches of b: are empty"),
        ({"batches": {}}, "there is no task"),
        ({"batches": iter([1])}, "which can be gone through once"),
        ({"batches": {"a": [1]}, "task_weights": {"aa": 1}}, "no task 'aa'; did you mean 'a'"),
        ({"task_weights": {"all": -1}}, "not negative"),
        ({"batches": {"a": [1], "b": [1]}, "loss_fn": {"a": cross_entropy}}, "none for the task 'b'"),
        ({"loss_fn": lambda m, b: m.weight.expand(3, 1)}, "a tensor with one number"),
        ({"loss_fn": cross_entropy}, r"a pair \(inputs, labels\)"),
        ({"loss_fn": causal_lm}, "a mapping with input_ids"),
        ({"variant": "sofd"}, "variant: is 'sofd'; did you mean 'soft'"),
        ({"steps": 0, "step": 2.0}, "steps: is 0.*\nstep: is 2.0"),
        ({"variant": "soft", "step": 0.5}, "step: is for variant='hard'"),
        ({"per_task_top_k": 1}, "per_task_top_k: is for variant='soft'"),
        ({"lmo": "layer", "layers": ["b.*"]}, r"layers: 'b.\*' matches no tensor"),
        ({"layers": "blocks"}, "layers: is 'blocks'"),
        ({"resume": True}, "from which checkpoint"),
        ({"checkpoint": "/nowhere/at/all.json"}, "checkpoint: /nowhere/at is no folder"),
        ({"checkpoint": "/tmp"}, "checkpoint: .*/tmp is a folder; give the name of a file"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else ",".join(value),
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    call: dict[str, Any] = {"loss_fn": lambda m, b: m.weight.sum(), "batches": [1]} | options
    with pytest.raises(InputError, match=message):
        fm.frank_wolfe(nn.Linear(1, 1, bias=False), POOL, call.pop("loss_fn"), call.pop("batches"), **call)


def test_a_loss_that_is_no_number_is_named() -> None:
    """With its task and step; the model is what it was before the step."""
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(3.0)

    def loss(m: nn.Module, factor: float) -> Tensor:
        theta = next(m.parameters())
        return factor * (theta - 1).abs().sum().where(theta.sum() > 2, torch.nan)

    def rising(m: nn.Module, _: float) -> Tensor:
        return next(m.parameters()).sum()

    with pytest.raises(MergeError, match=r"not finite at step 1: b \(nan\)"):
        fm.frank_wolfe(model, POOL, {"a": rising, "b": loss}, {"a": [1.0], "b": [1.0]}, step=0.9)
    assert model.weight.item() == pytest.approx(1.2)
    assert model.weight.grad is None
    assert not model.weight._post_accumulate_grad_hooks


ONES = [torch.ones(2, 4)]
GRADIENTS: dict[str, Callable[..., object]] = {
    "frank_wolfe": lambda model, loss: fm.frank_wolfe(model, [nn.Linear(4, 3).state_dict()], loss, ONES, steps=1),
    "ada_merging": lambda model, loss: fm.ada_merging(model, [nn.Linear(4, 3).state_dict()], ONES, loss, steps=1),
    "fisher": lambda model, loss: fm.fisher(
        model, {"m": nn.Linear(4, 3).state_dict()}, batches={"m": ONES}, labels="empirical", loss_fn=loss
    ),
}


@pytest.mark.parametrize("method", GRADIENTS)
@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("loss", "loss_fn: what it returns has no gradient"),
        ("mode", r"there are no gradients in torch\.inference_mode\(\)"),
        ("model", "model: was made in inference mode"),
    ],
)
def test_what_has_no_gradients_is_told(method: str, where: str, expected: str) -> None:
    """And the model stays what it was, but for AdaMerging's, whose first coefficients a loss is the first to be of."""
    with torch.inference_mode(where == "model"):
        model = nn.Linear(4, 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def loss(own: nn.Module, batch: Tensor) -> Tensor:
        value: Tensor = own(batch).mean()
        return value.detach() if where == "loss" else value

    with torch.inference_mode(where == "mode"), pytest.raises(InputError, match=expected):
        GRADIENTS[method](model, loss)
    stays = all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert stays == ((method, where) != ("ada_merging", "loss"))
