"""Text: a small decoder of bytes on kinds of text that the benchmark's own requirements bring to every machine."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import math
import sysconfig
from collections.abc import Iterable
from pathlib import Path

import torch
from demo.model import Block
from torch import Tensor, nn

from .domain import Domain, Task, Training

WIDTH, DEPTH, LENGTH = 64, 2, 64
TRAIN, MOST = 3000, 400_000  # windows and bytes a kind
WINDOWS = 400  # of a test of 2,000 samples


class Decoder(nn.Module):
    """Bytes [N, LENGTH] to logits of the next [N, LENGTH, 256]; input and output embeddings are one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, WIDTH)
        nn.init.normal_(self.embed.weight, std=WIDTH**-0.5)
        self.position = nn.Parameter(0.02 * torch.randn(1, LENGTH, WIDTH))
        self.blocks = nn.ModuleList(Block(WIDTH, causal=True) for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, text: Tensor) -> Tensor:
        return self.hidden(text) @ self.embed.weight.T

    def hidden(self, text: Tensor) -> Tensor:
        x = self.embed(text) + self.position
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Text(Domain):
    """A kind of text is a task; the base model has read some of all."""

    name = "text"
    metric = "bits per byte"
    more_is_better = False
    inner = ("blocks.*.qkv.*", "blocks.*.proj.*", "blocks.*.fc?.*")
    pretraining = Training(1200, 3e-3)
    finetuning = Training(100, 5e-4)
    batch = 32

    def specific(self) -> dict[str, Task]:
        test = max(1, self.size.test * WINDOWS // 2000)
        return {
            kind: Task(windows(shown, TRAIN, seed), windows(kept, test, seed + 1))
            for seed, (kind, (shown, kept)) in enumerate(texts().items())
        }

    def model(self, task: str | None) -> nn.Module:
        return Decoder()

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        losses = nn.functional.cross_entropy(outputs.transpose(1, 2), targets, reduction="none")
        return losses.mean(1) / math.log(2)


def windows(text: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pieces of LENGTH bytes at random places, and the same moved on by one."""
    starts = torch.randint(len(text) - LENGTH, (count, 1), generator=torch.Generator().manual_seed(seed))
    pieces = text[starts + torch.arange(LENGTH + 1)].long()
    return pieces[:, :-1], pieces[:, 1:]


def texts() -> dict[str, tuple[Tensor, Tensor]]:
    """By kind, what is for training and, from other files, what is for testing; at most MOST bytes each."""
    standard = Path(sysconfig.get_path("stdlib"))
    sources = {
        "python": contents(standard.glob("*.py")),
        "headers": contents((home("torch") / "include" / "c10").rglob("*.h")),
        "licences": contents(licences()),
        "docstrings": [text for file in python_files() if (text := docstrings(file))],
        "tables": contents((home("sklearn") / "datasets" / "data").glob("*.csv")),
        "font metrics": contents((home("matplotlib") / "mpl-data").rglob("*.afm")),
    }
    return {kind: split(found) for kind, found in sources.items()}


def home(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def contents(files: Iterable[Path]) -> list[bytes]:
    return [file.read_bytes() for file in sorted(files)]


def licences() -> set[Path]:
    found = [file for name in ("torch", "numpy", "matplotlib") for file in importlib.metadata.files(name) or ()]
    return {Path(str(f.locate())) for f in found if "LICENSE" in f.name.upper() and f.suffix in ("", ".txt")}


def python_files() -> list[Path]:
    return sorted((home("torch") / "nn" / "modules").glob("*.py")) + sorted((home("numpy") / "_core").glob("*.py"))


def docstrings(file: Path) -> bytes:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [node for node in ast.walk(ast.parse(file.read_bytes())) if isinstance(node, documented)]
    return "\n".join(filter(None, map(ast.get_docstring, nodes))).encode()


def split(found: list[bytes]) -> tuple[Tensor, Tensor]:
    """Every fourth file is kept for the test; of a single large file or few the last quarter of each."""
    if len(found) < 8:
        shown, kept = [t[: len(t) * 3 // 4] for t in found], [t[len(t) * 3 // 4 :] for t in found]
    else:
        shown, kept = [t for i, t in enumerate(found) if i % 4], found[::4]
    return as_tensor(b"".join(shown)), as_tensor(b"".join(kept))


def as_tensor(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text[:MOST]), dtype=torch.uint8)
