"""Twenty tasks of small images: the quality benchmark's eight, and as many more as the fonts have characters for."""

from __future__ import annotations

from pathlib import Path

import torch
from demo import data

from ..domain import Family, Size, State, Task, Training
from ..images import Images
from ..training import finetune, pretrain

TRAIN = 2000  # images a task
EVALUATED = 4  # the first tasks, which irrelevant models are no help with
SCRIPTS = {
    "armenian": "աբգդեզէըթժիլխծկհձղճմ",
    "georgian": "აბგდევზთიკლმნოპჟრსტუ",
    "greek capitals": "ΓΔΘΛΞΠΣΦΨΩ",
    "cyrillic capitals": "БГДЖЗИЛПУФЦЧШЩЭЮЯ",
    "accented": "àáâãäåæçèéêëìíîïñòóôõöøùúûü",
    "central european": "čďěňřšťžąćęłńśźżőű",
    "phonetic": "ɐɑɒɓɔɕɖɗəɛɜɟɡɣɤɥɯɱ",
    "arrows": "←↑→↓↔↕↖↗↘↙⇐⇑⇒⇓",
    "boxes": "─│┌┐└┘├┤┬┴┼═║╔╗╚╝",
    "shapes": "■□▲△▼▽◆◇○●◎◢◣",
    "fractions": "½¼¾⅓⅔⅛⅜⅝⅞",
    "superscripts": "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻",
}
FIRST = ("digits", "fonts", "armenian", "georgian")


class Pool(Images):
    """The base model has seen the characters of six tasks. The evaluated ones are those that it cannot do."""

    name = "pool"
    pretraining = Training(1200, 3e-3)
    finetuning = Training(120, 1e-3)
    width = 32

    def specific(self) -> dict[str, Task]:
        known = {task.name: Task(task.train, task.test, task.classes) for task in data.tasks(TRAIN, self.size.test)}
        known["fonts"] = self._fonts()
        known |= {name: self._characters(letters, 2 * k) for k, (name, letters) in enumerate(SCRIPTS.items(), 100)}
        return {name: known[name] for name in (*FIRST, *(name for name in known if name not in FIRST))}

    def _characters(self, letters: str, seed: int) -> Task:
        originals, parts = data.glyphs(letters).flatten(0, 1), []
        for number, count in enumerate((TRAIN, self.size.test)):
            images, which = data.sample(originals, count, seed + number)
            parts.append((images, which % len(letters)))
        return Task(parts[0], parts[1], len(letters))


def family(size: Size, seed: int, file: Path) -> Family:
    """The base and a fine-tune for every task, trained where the file has them not."""
    domain = Pool(size)
    if not file.is_file():
        start = pretrain(domain, seed)
        models = {task: finetune(domain, start, [task])[task] for task in domain.tasks}
        file.parent.mkdir(exist_ok=True)
        partial = file.with_suffix(".partial")
        torch.save((start, models), partial)
        partial.rename(file)
    start, models = torch.load(file)
    return Family(domain, {n: t for n, t in start.items() if domain.merges(n)}, models, {}, {})


def trunk(own: Family, task: str) -> State:
    """A fine-tune without its head."""
    return {name: own.models[task][name] for name in own.base}
