"""Adapters: an encoder and decoder with tied embeddings, fine-tuned by (IA)³ to rewrite strings.

As T0 in the papers, the base model knows every task a little, told by a marker that precedes the string. Only the
adapters, vectors that are ones in the base model, are trained and merged.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from .domain import Data, Domain, Task, Training
from .layers import Attention, FeedForward

WIDTH, DEPTH, LENGTH = 64, 2, 8
LETTERS = string.ascii_lowercase
RULES: dict[str, Callable[[str], str]] = {
    "reverse": lambda text: text[::-1],
    "sort": lambda text: "".join(sorted(text)),
    "upper": str.upper,
    "next": lambda text: "".join(LETTERS[(LETTERS.index(letter) + 1) % 26] for letter in text),
    "swap": lambda text: text[LENGTH // 2 :] + text[: LENGTH // 2],
    "double": lambda text: "".join(2 * letter for letter in text[: LENGTH // 2]),
}
START = len(string.ascii_letters)
MARKERS = {rule: START + 1 + number for number, rule in enumerate(RULES)}
VOCABULARY = START + 1 + len(RULES)
TRAIN = 6000  # strings a task


class Scale(nn.Module):
    """(IA)³'s vector: keys, values and inner activations are multiplied by it (Liu et al. 2022)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ia3 = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.ia3


class Layer(nn.Module):
    """Of the encoder, or with a memory of the decoder."""

    def __init__(self, *, decodes: bool) -> None:
        super().__init__()
        self.own, self.cross = Attention(WIDTH), Attention(WIDTH) if decodes else None
        self.inner = FeedForward(WIDTH)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3 if decodes else 2))
        for attention in filter(None, (self.own, self.cross)):
            attention.key = nn.Sequential(attention.key, Scale(WIDTH))
            attention.value = nn.Sequential(attention.value, Scale(WIDTH))
        self.inner.act = nn.Sequential(self.inner.act, Scale(2 * WIDTH))

    def forward(self, x: Tensor, memory: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        x = x + self.own(self.norms[0](x), mask=mask)
        if self.cross is not None:
            x = x + self.cross(self.norms[1](x), memory)
        return x + self.inner(self.norms[-1](x))


class EncoderDecoder(nn.Module):
    """Marked strings [n, 1 + LENGTH] and what was written so far [n, LENGTH] to logits [n, LENGTH, VOCABULARY]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        nn.init.normal_(self.embed.weight, std=WIDTH**-0.5)
        self.positions = nn.Parameter(0.1 * torch.randn(2, 1 + LENGTH, WIDTH))
        self.encoder = nn.ModuleList(Layer(decodes=False) for _ in range(DEPTH))
        self.decoder = nn.ModuleList(Layer(decodes=True) for _ in range(DEPTH))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))

    def forward(self, source: Tensor, written: Tensor) -> Tensor:
        memory = self.hidden(source, written)
        x = self.embed(written) + self.positions[1, :LENGTH]
        causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
        for layer in self.decoder:
            x = layer(x, memory, causal)
        return self.norms[1](x) @ self.embed.weight.T

    def hidden(self, source: Tensor, written: Tensor) -> Tensor:
        """The encoder's."""
        x = self.embed(source) + self.positions[0]
        for layer in self.encoder:
            x = layer(x)
        return self.norms[0](x)


class Adapters(Domain):
    """A rule of rewriting is a task. A string counts where every letter of the answer is right."""

    name = "adapters"
    metric = "exact answers in %"
    adapters = ("*.ia3",)
    inner = adapters
    filtering: ClassVar[dict[str, bool]] = {"filter_1d": True}  # there are vectors only
    pretraining = Training(320, 3e-3)
    finetuning = Training(150, 2e-2)

    def specific(self) -> dict[str, Task]:
        return {
            rule: Task(strings(rule, TRAIN, 2 * number), strings(rule, self.size.test, 2 * number + 1))
            for number, rule in enumerate(RULES)
        }

    def model(self, task: str | None) -> nn.Module:
        return EncoderDecoder()


def strings(rule: str, count: int, seed: int) -> Data:
    """Marked strings, the answers moved on by one, and the answers."""
    source = torch.randint(len(LETTERS), (count, LENGTH), generator=torch.Generator().manual_seed(seed))
    texts = ("".join(LETTERS[i] for i in row) for row in source.tolist())
    answers = torch.tensor([[string.ascii_letters.index(letter) for letter in RULES[rule](text)] for text in texts])
    marked = torch.cat([torch.full((count, 1), MARKERS[rule]), source], 1)
    written = torch.cat([torch.full((count, 1), START), answers[:, :-1]], 1)
    return marked, written, answers
