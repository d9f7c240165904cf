"""Objectives of a pool of CLIP's vision models, whose classes are words: zero-shot heads, as FusionBench has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from fusion_bench.dataset.image_dataset import ImageClassificationDataset
from fusion_bench.modelpool import CLIPVisionModelPool
from fusion_bench.models.hf_clip import HFCLIPClassifier
from fusion_bench.tasks.clip_classification import CLIPTemplateFactory, get_classnames_and_templates
from torch import Tensor, nn
from torch.nn import functional

from ...errors import nearest

Loss = Callable[[nn.Module, Any], Tensor]


def problems(pool: CLIPVisionModelPool, tasks: Sequence[str]) -> list[str]:
    """Why heads cannot be made for these tasks."""
    known = CLIPTemplateFactory.get_available_datasets()
    found = [
        f"train_datasets: FusionBench knows no classes of {task!r}{nearest(task, known)}; "
        "see CLIPTemplateFactory.register_dataset"
        for task in tasks
        if task not in known
    ]
    if isinstance(pool._models["_pretrained_"], nn.Module):
        found.append("modelpool: class names need all of CLIP; give the name or folder of _pretrained_")
    if pool._processor is None:
        found.append("modelpool: needs a processor, of images and class names")
    return found


class ZeroShot:
    """The heads of tasks, by the pre-trained model's text encoder, and images as the vision models take them."""

    def __init__(self, pool: CLIPVisionModelPool, tasks: Sequence[str], device: torch.device) -> None:
        self.processor = pool.load_processor()
        clip = pool.load_clip_model("_pretrained_").to(device).requires_grad_(False)
        self.projection, self.scale = clip.visual_projection, clip.logit_scale.exp()
        classifier, self.classes = HFCLIPClassifier(clip, self.processor), dict[str, Tensor]()
        for task in tasks:
            classifier.set_classification_task(*get_classnames_and_templates(task))
            self.classes[task] = classifier.zeroshot_weights

    def images(self, dataset: Any) -> ImageClassificationDataset:
        """Pairs of pixel values and label."""
        return ImageClassificationDataset(dataset, self.processor)

    def loss(self, loss: Loss, task: str) -> Loss:
        """A loss of logits, as one of the vision model on batches of a task."""
        return lambda vision, batch: loss(_Classifier(vision, self, task), batch)


class _Classifier(nn.Module):
    """A vision model with a task's head."""

    def __init__(self, vision: nn.Module, heads: ZeroShot, task: str) -> None:
        super().__init__()
        self.vision, self.heads, self.classes = vision, heads, heads.classes[task]

    def forward(self, images: Tensor) -> Tensor:
        embedded = functional.normalize(self.heads.projection(self.vision(images).pooler_output), dim=-1)
        logits: Tensor = self.heads.scale * embedded @ self.classes.T
        return logits
