"""Configurations merged by mergekit and by fastmerge: FASTMERGE_MERGEKIT names the Python that has mergekit."""

from __future__ import annotations

import json
from pathlib import Path

import mergekit_runner
import mergekit_tokens
import pytest
import torch
from folders import read
from mergekit_configs import ALIKE, RANDOM, based, located, model
from mergekit_golden import models
from mergekit_tokens import TOKENIZED
from torch import Tensor

import fastmerge as fm

pytestmark = pytest.mark.skipif(not mergekit_runner.available(), reason="there is no mergekit here")

ULPS = 6
SEEDS = 12
BF16 = based("ties", model("a", weight=1.0, density=0.5), model("b", weight=0.7, density=0.5)) | {"dtype": "bfloat16"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models whose tokens differ."""
    return mergekit_tokens.models(tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="module")
def theirs(folders: dict[str, Path], tokens: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What mergekit makes of all configurations."""
    root = tmp_path_factory.mktemp("mergekit")
    jobs = {root / name: located(config, folders) for name, config in ALIKE.items()}
    drawn = {root / f"{name} {i}": located(config, folders) for name, config in RANDOM.items() for i in range(SEEDS)}
    tokenized = {root / f"tokens of {name}": mergekit_tokens.located(c, tokens) for name, c in TOKENIZED.items()}
    mergekit_runner.run(
        {**jobs, **drawn, **tokenized, root / "bfloat16": located(BF16, folders)},
        seeds={out: i for i, out in enumerate(drawn)},
    )
    return root


@pytest.mark.parametrize("name", ALIKE)
def test_alike(name: str, folders: dict[str, Path], theirs: Path, tmp_path: Path) -> None:
    """Nothing is drawn and no tie broken: the same tensors, dtypes and layers, and values but for a few roundings."""
    fm.run(located(ALIKE[name], folders), tmp_path / "out")
    ours, expected = read(tmp_path / "out"), read(theirs / name)
    assert ours.keys() == expected.keys()
    for tensor, own in ours.items():
        assert own.dtype == expected[tensor].dtype, tensor
        assert ulps(own, expected[tensor]) <= ULPS, tensor
    configs = [json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "out", theirs / name)]
    assert configs[0]["num_hidden_layers"] == configs[1]["num_hidden_layers"]
    fm.verify(tmp_path / "out", samples=None)


@pytest.mark.parametrize("name", TOKENIZED)
def test_tokens(name: str, tokens: dict[str, Path], theirs: Path, tmp_path: Path) -> None:
    """The same tokens, told apart in the same way, and each with the same row, wherever that is."""
    transformers = pytest.importorskip("transformers")
    fm.run(mergekit_tokens.located(TOKENIZED[name], tokens), tmp_path / "out")
    places = tmp_path / "out", theirs / f"tokens of {name}"
    ours, expected = (transformers.AutoTokenizer.from_pretrained(place) for place in places)
    ids, others = ours.get_vocab(), expected.get_vocab()
    assert ids.keys() == others.keys()
    assert ours.tokenize("abcxy<a>q<s>") == expected.tokenize("abcxy<a>q<s>")
    assert ours.chat_template == expected.chat_template
    order = [others[token] for token in sorted(ids, key=lambda token: ids[token])]
    merged, reference = map(read, places)
    for tensor, own in merged.items():
        rows = reference[tensor]
        if tensor in ("model.embed_tokens.weight", "lm_head.weight"):
            rows = torch.cat([rows[order], rows[len(order) :]])
        torch.testing.assert_close(own, rows, rtol=1e-5, atol=1e-6)
    vocabularies = [json.loads((place / "config.json").read_text())["vocab_size"] for place in places]
    assert vocabularies[0] == vocabularies[1] == len(merged["lm_head.weight"])


def ulps(ours: Tensor, theirs: Tensor) -> float:
    """How far values are apart, in units of the last place of the tensor's typical weight."""
    eps = torch.finfo(ours.dtype).eps
    size = theirs.double().abs().maximum(theirs.double().abs().mean()).clamp(min=1e-30)
    return float(((ours.double() - theirs.double()).abs() / size).max()) / eps


@pytest.mark.parametrize("name", RANDOM)
def test_random_methods_agree_in_their_moments(
    name: str, folders: dict[str, Path], theirs: Path, tmp_path: Path
) -> None:
    """By quarters of each row's magnitudes: how many elements are kept, and what remains of the task vector."""
    base, a = read(folders["base"]), read(folders["a"])
    found: dict[str, list[Tensor]] = {"ours": [], "theirs": []}
    for i in range(SEEDS):
        config = located(RANDOM[name], folders)
        config["parameters"]["seed"] = i
        fm.run(config, tmp_path / str(i))
        for who, folder in (("ours", tmp_path / str(i)), ("theirs", theirs / f"{name} {i}")):
            merged = read(folder)
            rows = [moments(merged[t] - base[t], a[t] - base[t]) for t in base if base[t].dim() == 2]
            found[who].append(torch.stack(rows).mean(0))
    ours, expected = (torch.stack(found[who]) for who in ("ours", "theirs"))
    spread = (ours.var(0) + expected.var(0)).div(SEEDS).sqrt() + 1e-4
    assert ((ours.mean(0) - expected.mean(0)).abs() < 5 * spread).all()


def moments(delta: Tensor, tau: Tensor) -> Tensor:
    """Of every quarter by magnitude in its row: the fraction that is kept, and the mean of what is left of a value."""
    order = tau.abs().argsort(1)
    kept, share = (delta != 0).double().gather(1, order), (delta / tau).double().gather(1, order)
    return torch.stack([part.mean() for whole in (kept, share) for part in whole.chunk(4, 1)])


def test_bfloat16_intermediates_flip_few_signs(
    folders: dict[str, Path], theirs: Path, tmp_path: Path, record_property: pytest.RecordProperty
) -> None:
    """mergekit rounds task vectors to bfloat16 before they vote and are trimmed; fastmerge rounds the result alone."""
    fm.run(located(BF16, folders), tmp_path / "out")
    ours, expected, base = read(tmp_path / "out"), read(theirs / "bfloat16"), read(folders["base"])
    flipped = total = 0
    for name, own in ours.items():
        assert own.dtype == expected[name].dtype == torch.bfloat16
        start = base[name].bfloat16().float()
        one, other = (own.float() - start).sign(), (expected[name].float() - start).sign()
        flipped += int((one * other < 0).sum())
        total += own.numel()
    record_property("flipped", flipped / total)
    assert flipped / total < 0.02
