"""Training a domain's base, its fine-tunes, and one model for all tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from .domain import Data, Domain, Family, State, Training


def train(domain: Domain, seed: int) -> Family:
    """All models of a domain. The seed is that of initial weights and of the order of samples."""
    start = pretrain(domain, seed)
    models = {task: finetune(domain, start, [task]) for task in domain.tasks}
    return Family(
        domain,
        {n: t for n, t in start.items() if domain.merges(n)},
        {task: own[task] for task, own in models.items()},
        finetune(domain, start, list(domain.tasks)),
        {n: t for n, t in start.items() if not domain.merges(n)},
    )


def pretrain(domain: Domain, seed: int) -> State:
    """The base model without its head."""
    torch.manual_seed(seed)
    base = domain.model(None)
    trained = [(n, p) for n, p in base.named_parameters() if not domain.is_adapter(n)]
    fit(
        domain, trained, domain.pretraining, domain.pretraining.steps, lambda _: step(domain, base, domain.corpus.train)
    )
    return {n: t for n, t in base.state_dict().items() if not domain.is_head(n)}


def finetune(domain: Domain, start: State, tasks: list[str]) -> dict[str, State]:
    """Models of these tasks that share all but their heads, trained for as many steps as each alone would be."""
    models = [domain.model(task) for task in tasks]
    for model in models:
        model.load_state_dict(start, strict=False)
        tie(model, models[0], domain)
    parameters = {
        id(p): (n, p) for model in models for n, p in model.named_parameters() if domain.merges(n) or domain.is_head(n)
    }

    def loss(number: int) -> Tensor:
        k = number % len(tasks)
        return step(domain, models[k], domain.tasks[tasks[k]].train)

    fit(domain, parameters.values(), domain.finetuning, domain.finetuning.steps * len(tasks), loss)
    keep = {n for n in models[0].state_dict() if domain.merges(n)}
    return {
        task: {n: t.detach().clone() for n, t in model.state_dict().items() if n in keep or domain.is_head(n)}
        for task, model in zip(tasks, models, strict=True)
    }


def tie(model: nn.Module, first: nn.Module, domain: Domain) -> None:
    """Give a model the very parameters of the first that are of no head."""
    for name, parameter in list(first.named_parameters()):
        if not domain.is_head(name):
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, parameter)


def step(domain: Domain, model: nn.Module, data: Data) -> Tensor:
    """The loss on a batch drawn at random."""
    rows = torch.randint(len(data[0]), (domain.batch,))
    *inputs, targets = (t[rows] for t in data)
    return domain.loss(model(*inputs), targets)


def fit(
    domain: Domain,
    parameters: Iterable[tuple[str, nn.Parameter]],
    training: Training,
    steps: int,
    loss: Callable[[int], Tensor],
) -> None:
    """AdamW under a rate that rises for a tenth of the steps and then falls to nothing."""
    named = list(parameters)
    heads = [p for n, p in named if domain.is_head(n)]
    others = [p for n, p in named if not domain.is_head(n)]
    groups = [{"params": others, "lr": training.rate}, {"params": heads, "lr": training.head_rate}]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.01, fused=True)
    steps = domain.size.steps(steps)
    warm = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda number: min((number + 1) / warm, (steps - number) / (steps - warm + 1))
    )
    for number in range(steps):
        optimizer.zero_grad()
        loss(number).backward()
        nn.utils.clip_grad_norm_([p for _, p in named], 1.0)
        optimizer.step()
        schedule.step()
