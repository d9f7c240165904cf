"""Two streams: images and words in one transformer that attends to both, with norms and inner layers for each.

As in the papers' experiments with BEiT-3, which is built so: the base model learns words that are masked in captions of
images, and is fine-tuned to classify images, caption them, answer questions and judge statements about them, each with
a head of its own.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence

import torch
from demo import data
from demo.model import TOKENS, stem
from torch import Tensor, nn

from .domain import IGNORED, Data, Domain, Task, Training
from .layers import Attention, FeedForward

WIDTH, DEPTH = 64, 2
GLYPHS = string.ascii_uppercase + string.digits
ATTRIBUTES = {  # of data.FONTS in turn, and of an image or its negative
    "weight": ("regular", "bold", "regular", "bold", "regular", "slanted"),
    "family": ("sans", "sans", "serif", "serif", "mono", "sans"),
    "colour": ("white", "black"),
}
VALUES = {kind: tuple(dict.fromkeys(values)) for kind, values in ATTRIBUTES.items()} | {"glyph": tuple(GLYPHS)}
WORDS = ["START", "MASK", "which", "is", "yes", "no", *VALUES, *(word for words in VALUES.values() for word in words)]
WORD = {word: number for number, word in enumerate(WORDS)}
CAPTION = ("colour", "weight", "family", "glyph")  # the order of a caption's words
LONGEST = 1 + len(CAPTION)
TRAIN = 6000  # images a task


class Layer(nn.Module):
    """Shared attention; norms and inner layers are the images' (0) or the words' (1)."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention(WIDTH)
        self.before, self.after = (nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2)) for _ in range(2))
        self.inner = nn.ModuleList(FeedForward(WIDTH) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attention(by_stream(self.before, x), mask=mask)
        return x + by_stream(self.inner, by_stream(self.after, x))


def by_stream(modules: nn.ModuleList, x: Tensor) -> Tensor:
    """Image positions through the first module, word positions through the second."""
    return torch.cat([modules[0](x[:, :TOKENS]), modules[1](x[:, TOKENS:])], 1)


class TwoStream(nn.Module):
    """Images [n, 16, 16] and words [n, length] to logits of the whole, or of every word [n, length, outputs]."""

    def __init__(self, outputs: int, *, words: bool, causal: bool) -> None:
        super().__init__()
        self.words, self.causal = words, causal
        self.stem = stem(WIDTH)
        self.embed = nn.Embedding(len(WORDS), WIDTH)
        nn.init.normal_(self.embed.weight, std=0.1)
        self.position_embed = nn.Parameter(0.02 * torch.randn(TOKENS + LONGEST, WIDTH))
        self.layers = nn.ModuleList(Layer() for _ in range(DEPTH))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.head = nn.Linear(WIDTH, outputs)

    def forward(self, images: Tensor, words: Tensor) -> Tensor:
        x = self.hidden(images, words)
        return self.head(x[:, TOKENS:] if self.words else x.mean(1))

    def hidden(self, images: Tensor, words: Tensor) -> Tensor:
        x = torch.cat([self.stem(images[:, None]).flatten(2).transpose(1, 2), self.embed(words)], 1)
        length = x.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool)
        if self.causal:  # images see images alone, words what precedes them
            mask = mask.tril()
            mask[:TOKENS, :TOKENS] = True
        x = x + self.position_embed[:length]
        for layer in self.layers:
            x = layer(x, mask)
        return by_stream(self.norms, x)


class TwoStreams(Domain):
    """Images with words: classification, captions, questions and statements."""

    name = "two-stream"
    metric = "accuracy in %, of captions exact ones"
    heads = ("head.*",)
    inner = ("*.attention.*", "*.inner.*")
    pretraining = Training(1800, 3e-3)
    finetuning = Training(200, 1e-3)

    def general(self, tasks: Mapping[str, Task]) -> Task:
        return Task(masked(TRAIN, 1), masked(100, 2), len(WORDS))

    def specific(self) -> dict[str, Task]:
        makers = {"classification": classes, "captioning": captions, "question": questions, "statement": statements}
        outputs = {"classification": len(GLYPHS), "captioning": len(WORDS), "question": len(WORDS), "statement": 2}
        return {
            task: Task(make(TRAIN, 10 * number), make(self.size.test, 10 * number + 5), outputs[task])
            for number, (task, make) in enumerate(makers.items(), 1)
        }

    def model(self, task: str | None) -> nn.Module:
        outputs = self.tasks[task].outputs if task else self.corpus.outputs
        return TwoStream(outputs, words=task in (None, "captioning"), causal=task == "captioning")


def scenes(count: int, seed: int) -> tuple[Tensor, list[dict[str, str]]]:
    """Images of a glyph, half of them negatives, and what is to be said of each."""
    images, which = data.sample(data.glyphs(GLYPHS).flatten(0, 1), count, seed)
    negative = torch.rand(count, generator=torch.Generator().manual_seed(seed)) < 0.5
    images = torch.where(negative[:, None, None], 1 - images, images)
    said = [
        {
            "colour": ATTRIBUTES["colour"][dark],
            "weight": ATTRIBUTES["weight"][number // len(GLYPHS)],
            "family": ATTRIBUTES["family"][number // len(GLYPHS)],
            "glyph": GLYPHS[number % len(GLYPHS)],
        }
        for number, dark in zip(which.tolist(), negative.tolist(), strict=True)
    ]
    return images, said


def numbered(sentences: Sequence[Sequence[str]]) -> Tensor:
    return torch.tensor([[WORD[word] for word in sentence] for sentence in sentences])


def masked(count: int, seed: int) -> Data:
    """Captions of which half of the words are masked, to be found from image and the others."""
    images, said = scenes(count, seed)
    words = numbered([["START", *(own[kind] for kind in CAPTION)] for own in said])
    hidden = torch.rand(words.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    hidden[:, 0] = False
    return images, words.masked_fill(hidden, WORD["MASK"]), words.masked_fill(~hidden, IGNORED)


def classes(count: int, seed: int) -> Data:
    images, said = scenes(count, seed)
    return images, numbered([["START"]] * count), torch.tensor([GLYPHS.index(own["glyph"]) for own in said])


def captions(count: int, seed: int) -> Data:
    images, said = scenes(count, seed)
    words = numbered([["START", *(own[kind] for kind in CAPTION)] for own in said])
    return images, words[:, :-1], words[:, 1:]


def questions(count: int, seed: int) -> Data:
    """Which colour, weight, family or glyph; the answer is a word."""
    images, said = scenes(count, seed)
    kinds = [CAPTION[i] for i in chance(len(CAPTION), count, seed)]
    answers = torch.tensor([WORD[own[kind]] for own, kind in zip(said, kinds, strict=True)])
    return images, numbered([["which", kind] for kind in kinds]), answers


def statements(count: int, seed: int) -> Data:
    """Whether a glyph of a weight and family is seen: half of them are, of the others one word is wrong."""
    images, said = scenes(count, seed)
    kinds = ("weight", "family", "glyph")
    lies, wrong, other = chance(2, count, seed), chance(len(kinds), count, seed + 1), chance(1000, count, seed + 2)
    sentences = []
    for own, lie, place, pick in zip(said, lies, wrong, other, strict=True):
        told = [own[kind] for kind in kinds]
        if lie:
            choices = [value for value in VALUES[kinds[place]] if value != told[place]]
            told[place] = choices[pick % len(choices)]
        sentences.append(["is", *told])
    return images, numbered(sentences), 1 - torch.tensor(lies)


def chance(choices: int, count: int, seed: int) -> list[int]:
    return torch.randint(choices, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
