"""Training the demo's base model and its fine-tunes."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from data import Task
from model import VisionTransformer, is_head, load, save
from safetensors.torch import load_file
from torch import Tensor, nn

BATCH = 128


def pretrain(task: Task, folder: Path, epochs: int = 8) -> str:
    """Train the base and save it without a head. Returns a line to print."""
    torch.manual_seed(0)
    model = VisionTransformer(task.classes)
    line = _fit(model, task.train, epochs, rate=4e-3)
    save(model, folder, head=False)
    return line


def finetune(base: Path, task: Task, folder: Path, epochs: int = 4) -> str:
    """Fine-tune all of the base with a new head for one task, and save both."""
    torch.manual_seed(1)
    model = VisionTransformer(task.classes)
    model.load_state_dict(load_file(base / "model.safetensors"), strict=False)
    line = _fit(model, task.train, epochs, rate=2e-4)
    save(model, folder)
    return line


def accuracy(trunk: Path, head: Path, test: tuple[Tensor, Tensor]) -> float:
    """The fraction of test images that a trunk and a head classify correctly."""
    model = load(trunk, head)
    images, labels = test
    with torch.inference_mode():
        answers = torch.cat([model(batch).argmax(1) for batch in images.split(500)])
    return float((answers == labels).float().mean())


def _fit(model: VisionTransformer, train: tuple[Tensor, Tensor], epochs: int, rate: float) -> str:
    begin = time.perf_counter()
    images, labels = train
    # A fresh head learns faster than the trunk that it is put on.
    heads = [p for n, p in model.named_parameters() if is_head(n)]
    trunk = [p for n, p in model.named_parameters() if not is_head(n)]
    groups = [{"params": trunk, "lr": rate}, {"params": heads, "lr": 30 * rate}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01, fused=True)
    steps = epochs * -(-len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [rate, 30 * rate], total_steps=steps, pct_start=0.2)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.05)
    loss = torch.zeros(())
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(BATCH):
            loss = loss_of(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return f"loss {loss.item():.3f} after {epochs} epochs, {time.perf_counter() - begin:.1f} s"
