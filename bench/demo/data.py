"""The demo's image tasks: scikit-learn's digits, and glyphs rendered with the fonts that matplotlib ships.

Everything is made on this machine from what is installed; no download. Images are 16 × 16, grey, in [0, 1].
Train and test never share an original: digits are split by image, glyphs by the random transformation applied to them.
"""

from __future__ import annotations

import functools
import string
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.ft2font import FT2Font
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional

SIZE = 16
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSansMono", "DejaVuSans-Oblique")
GREEK = "αβγδεζηθικλμνξοπρστυφχψω"
SYMBOLS = "+-=<>!?#%&@*/()[]{}^~$"
CYRILLIC = "абвгдежзиклмнпрстуфхцчшщэюя"
SETS = {
    "numerals": string.digits,
    "uppercase": string.ascii_uppercase,
    "lowercase": string.ascii_lowercase,
    "greek": GREEK,
    "symbols": SYMBOLS,
    "cyrillic": CYRILLIC,
}


@dataclass(frozen=True)
class Task:
    """Images [N, SIZE, SIZE] with labels [N], for training and for testing."""

    name: str
    classes: int
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def tasks(train: int = 3000, test: int = 2000) -> list[Task]:
    """Seven tasks with heads of different sizes, each with `train` and `test` images."""
    others = [_glyph_task(name, letters, train, test, seed) for seed, (name, letters) in enumerate(SETS.items(), 1)]
    return [_digits(train, test), *others]


def pretraining(count: int = 14000) -> Task:
    """What the base model learns: all characters of the glyph tasks at once, under harder transformations."""
    letters = "".join(SETS.values())
    images, labels = sample(glyphs(letters).flatten(0, 1), count, seed=100, strength=0.7)
    return Task(
        "characters", len(letters), (images, labels % len(letters)), (images[:100], labels[:100] % len(letters))
    )


@functools.cache
def glyphs(letters: str) -> Tensor:
    """Every letter in every font: [fonts, letters, SIZE, SIZE]."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = [FT2Font(str(folder / f"{name}.ttf")) for name in FONTS]
    return torch.stack([torch.stack([_render(font, letter) for letter in letters]) for font in fonts])


def _render(font: FT2Font, letter: str) -> Tensor:
    font.set_size(12, 72)
    font.set_text(letter, 0.0)
    font.draw_glyphs_to_bitmap()
    bitmap = torch.from_numpy(np.asarray(font.get_image(), dtype=np.float32) / 255)
    bitmap = bitmap[:SIZE, :SIZE]
    canvas = torch.zeros(SIZE, SIZE)
    top, left = (SIZE - bitmap.shape[0]) // 2, (SIZE - bitmap.shape[1]) // 2
    canvas[top : top + bitmap.shape[0], left : left + bitmap.shape[1]] = bitmap
    return canvas


def _glyph_task(name: str, letters: str, train: int, test: int, seed: int) -> Task:
    originals = glyphs(letters).flatten(0, 1)
    parts = []
    for count, part in ((train, 2 * seed), (test, 2 * seed + 1)):
        images, which = sample(originals, count, part)
        parts.append((images, which % len(letters)))
    return Task(name, len(letters), parts[0], parts[1])


def _digits(train: int, test: int) -> Task:
    """Scikit-learn's 1,797 handwritten digits: a third of them is kept for the test, then both parts are augmented."""
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float()[:, None] / 16
    images = functional.interpolate(images, size=SIZE, mode="bilinear")[:, 0]
    labels = torch.from_numpy(bunch.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    kept, shown = order[:600], order[600:]
    parts = []
    for count, part, seed in ((train, shown, 60), (test, kept, 61)):
        augmented, which = sample(images[part], count, seed, strength=0.4)
        parts.append((augmented, labels[part][which]))
    return Task("digits", 10, parts[0], parts[1])


def sample(originals: Tensor, count: int, seed: int, strength: float = 0.5) -> tuple[Tensor, Tensor]:
    """`count` originals, each turned, scaled and shifted at random and with noise; and which they were."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    which = torch.randint(0, len(originals), (count,), generator=generator)
    angle = uniform(-0.25, 0.25, count) * strength
    scale = 1 + uniform(-0.15, 0.15, count) * strength
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2) * scale[:, None, None]
    shift = uniform(-0.2, 0.2, count, 2, 1) * strength
    places = functional.affine_grid(torch.cat([turn, shift], 2), [count, 1, SIZE, SIZE], align_corners=False)
    images = functional.grid_sample(originals[which][:, None], places, align_corners=False)[:, 0]
    return images + 0.15 * strength * torch.randn(images.shape, generator=generator), which
