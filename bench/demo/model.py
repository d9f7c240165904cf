"""A small vision transformer: a trunk that all tasks share, and a head for each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

SIZE, WIDTH, DEPTH, HEADS = 16, 96, 2, 4
TOKENS = (SIZE // 4) ** 2


class Block(nn.Module):
    def __init__(self, width: int = WIDTH, causal: bool = False) -> None:
        super().__init__()
        self.causal = causal
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.proj(attended.transpose(1, 2).reshape(n, length, width))
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))


def stem(width: int) -> nn.Module:
    """Images [N, 1, SIZE, SIZE] to [N, width, SIZE / 4, SIZE / 4].

    Two small convolutions instead of one of patch size: learns in a tenth of the steps (Xiao et al. 2021).
    """
    return nn.Sequential(nn.Conv2d(1, 32, 3, 2, 1), nn.GELU(), nn.Conv2d(32, width, 3, 2, 1))


class VisionTransformer(nn.Module):
    """Images [N, SIZE, SIZE] to logits [N, classes]."""

    def __init__(self, classes: int, width: int = WIDTH) -> None:
        super().__init__()
        self.stem = stem(width)
        self.position = nn.Parameter(0.02 * torch.randn(1, TOKENS, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(DEPTH))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.hidden(images).mean(1))

    def hidden(self, images: Tensor) -> Tensor:
        """The last hidden states, [N, TOKENS, width]."""
        x = self.stem(images[:, None]).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def is_head(name: str) -> bool:
    """Whether a tensor belongs to the task alone."""
    return name.startswith("classifier.")


def save(model: VisionTransformer, folder: Path, *, head: bool = True) -> None:
    """A Hugging Face folder, written under another name first, so that one that exists is whole."""
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    state = {n: t.contiguous() for n, t in model.state_dict().items() if head or not is_head(n)}
    save_file(state, partial / "model.safetensors", {"format": "pt"})
    config = {"model_type": "fastmerge-demo-vit", "num_labels": model.classifier.out_features if head else 0}
    (partial / "config.json").write_text(json.dumps(config) + "\n")
    partial.rename(folder)


def load(trunk: Path, head: Path) -> VisionTransformer:
    """The trunk of one folder with the head of another (the same, where a folder has both)."""
    state: Mapping[str, Tensor] = load_file(trunk / "model.safetensors") | {
        n: t for n, t in load_file(head / "model.safetensors").items() if is_head(n)
    }
    model = VisionTransformer(state["classifier.bias"].numel())
    model.load_state_dict(state)
    return model.eval()
