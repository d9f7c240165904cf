"""The diagonal of the Fisher information matrix, from batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import InputError, MergeError, nearest
from ..forms import well_formed
from ..fw.matching import slots
from ..fw.objective import Batches, LossFn, check_batches, need_gradient, need_gradients
from ..fw.objectives import cross_entropy, logits, unlabelled
from ..runtime.router import generator_of

Labels = Literal["expectation", "sample", "empirical"]


@well_formed
def fisher_information(
    model: nn.Module,
    batches: Batches,
    *,
    labels: Labels = "expectation",
    loss_fn: LossFn = cross_entropy,
    seed: int = 0,
    task_specific: Sequence[str] = (),
) -> dict[str, Tensor]:
    """F_i = E_x E_y (∂ log p(y | x) / ∂θ_i)² of every parameter (Matena & Raffel 2022, arXiv 2111.09832).

    Gradients are of single samples: a batch is taken apart along the first dimension of its tensors. labels
    "expectation", the paper's: y is the model's own prediction, the mean over all classes by their probabilities; it
    takes a backward pass a class, of logits [n, C]. "sample": one y drawn from the prediction for each sample, or for
    each position of logits [n, …, C], whose logarithms are added up; `seed` is that of the draws. "empirical": y is the
    label given, log p being −loss_fn(model, sample).

    model: a torch module, in the mode that it is in (call `.eval()` first); batches as `fm.fw.entropy` takes them, or
    as loss_fn does. Beside the model there are its gradient and the result: by name (of tied parameters the first) a
    tensor of the parameter's shape, float32 (float64 of float64), but for parameters that match `task_specific`
    patterns. InputError for wrong arguments, MergeError where the result is not finite.
    """
    problems = check_batches({"all": batches})
    if labels not in get_args(Labels):
        problems.append(f"labels: is {labels!r}{nearest(str(labels), get_args(Labels))}; expected {get_args(Labels)}")
    if problems:
        raise InputError(problems)
    state = model.state_dict(keep_vars=True)
    parameters = {n: p for n in slots(model, task_specific) if isinstance(p := state[n], nn.Parameter)}
    found = {n: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for n, p in parameters.items()}
    generator, count = generator_of(seed), 0
    with _differentiable(parameters.values()), torch.enable_grad():
        for batch in batches:
            for sample in _samples(batch):
                for share, log_p in _terms(model, sample, labels, loss_fn, generator):
                    _add_squares(found, parameters, share, log_p)
                count += 1
    if not count:
        raise InputError("batches: hold no sample; pass one at least")
    for own in found.values():
        own.requires_grad_(False).div_(count)
    wild = [name for name, own in found.items() if not own.isfinite().all()]
    if wild:
        raise MergeError(f"the Fisher information of {wild[0]!r} is not finite; look at the model and its batches")
    return found


def _terms(
    model: nn.Module, sample: Any, labels: Labels, loss_fn: LossFn, generator: torch.Generator
) -> Iterator[tuple[float, Tensor]]:
    """Log-probabilities of one sample's labels, and how much the square of each one's gradient counts."""
    if labels == "empirical":
        yield 1.0, -loss_fn(model, sample)
        return
    logs = logits(model, unlabelled(sample, model)).log_softmax(-1)
    if labels == "expectation":
        if logs.ndim != 2:
            raise InputError(
                f"labels: 'expectation' is for logits [n, C], the model's are {list(logs.shape)}; use 'sample'"
            )
        yield from zip(logs[0].detach().exp().tolist(), logs[0], strict=True)
        return
    flat = logs.flatten(0, -2)
    drawn = torch.multinomial(flat.detach().exp().cpu(), 1, generator=generator).to(flat.device)
    yield 1.0, flat.gather(1, drawn).sum()


def _add_squares(
    found: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter], share: float, log_p: Tensor
) -> None:
    need_gradient(log_p)
    gradients = torch.autograd.grad(log_p, list(parameters.values()), retain_graph=True, allow_unused=True)
    for own, gradient in zip(found.values(), gradients, strict=True):
        if gradient is not None:
            wide = gradient.to(own.dtype)
            own.addcmul_(wide, wide, value=share)


def _samples(batch: Any) -> Iterator[Any]:
    """A batch's samples, each as a batch of one."""
    sizes = {len(tensor) for tensor in _tensors(batch)}
    if len(sizes) != 1:
        raise InputError(f"batches: tensors of a batch must be of as many samples, they are of {sorted(sizes)}")
    for i in range(*sizes):
        yield _mapped(batch, lambda tensor, i=i: tensor[i : i + 1])  # type: ignore[misc]


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, (Mapping, tuple, list)):
        for part in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _tensors(part)


def _mapped(batch: Any, use: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(batch, Tensor):
        return use(batch)
    if isinstance(batch, Mapping):
        return {name: _mapped(part, use) for name, part in batch.items()}
    return [_mapped(part, use) for part in batch] if isinstance(batch, (tuple, list)) else batch


@contextmanager
def _differentiable(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Within, gradients of frozen parameters are found too."""
    need_gradients()
    frozen = [p for p in parameters if not p.requires_grad]
    for p in frozen:
        p.requires_grad_(True)
    try:
        yield
    finally:
        for p in frozen:
            p.requires_grad_(False)
