"""Models of the Hub: headers before weights, revisions, the cache without a network, what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from adapters import lora, write_adapter
from folders import content, near, state, write
from hub import Hub, serving
from safetensors.torch import save_file

import fastmerge as fm

FASTMERGE = str(Path(sys.executable).with_name("fastmerge"))
SHAPES = {"a.weight": (700, 300), "b.weight": (300, 700)}
FIRST = 100_000  # bytes of a file that its header is looked for in


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """org/base, org/math in two shards, org/lora, org/pickle, and what only a token opens."""
    root = tmp_path / "served"
    base = state(0, shapes=SHAPES)
    write(root / "org" / "base", base)
    math = root / "org" / "math"
    math.mkdir(parents=True)
    names = {}
    for k, (name, tensor) in enumerate(near(base, 1).items(), 1):
        file = f"model-{k:05}-of-00002.safetensors"
        save_file({name: tensor}, math / file, {"format": "pt"})
        names[name] = file
    (math / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    (math / "config.json").write_text("{}")
    write_adapter(root / "org" / "lora", lora({"a": (700, 300)}, 4, 1), base_model_name_or_path="org/base")
    (root / "org" / "pickle").mkdir()
    (root / "org" / "pickle" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (root / "org" / "secret").mkdir()
    for name in ("base", "math", "lora"):  # what no merge needs
        (root / "org" / name / ".gitattributes").write_text("* text")
        (root / "org" / name / "optimizer.pt").write_bytes(bytes(1000))
    with serving(root) as served:
        yield served


def fastmerge(hub: Hub, home: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The command line, in a process of its own that knows no other Hub; the cache is home's."""
    known = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    known |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    home.mkdir(exist_ok=True)
    return subprocess.run(
        [FASTMERGE, *arguments], env=known | env, cwd=home, capture_output=True, text=True, check=False
    )


def test_headers_are_read_before_weights_are_fetched_and_the_cache_serves_after(hub: Hub, tmp_path: Path) -> None:
    home, out, served = tmp_path / "home", tmp_path / "out", hub.root / "org"
    call = ("task_arithmetic", "--base", "org/base", "--model", "math=org/math@v1", "--model", "lora=org/lora")
    planned = fastmerge(hub, home, "plan", *call, "--json")
    assert planned.returncode == 0, planned.stderr
    weights = {f.name: f.stat().st_size for f in served.rglob("*.safetensors")}
    plan = json.loads(planned.stdout)
    assert {name: hub.fetched(name) for name in weights} == {name: min(FIRST, n) for name, n in weights.items()}
    assert plan["fetches"]["org/base"] == weights["model.safetensors"]
    assert plan["base"] == f"org/base@{hub.commit('org/base')}"

    merged = fastmerge(hub, home, "merge", *call, "--out", str(out))
    assert merged.returncode == 0, merged.stderr
    models = {"math": served / "math", "lora": served / "lora"}
    fm.merge("task_arithmetic", served / "base", models, tmp_path / "local")
    assert content(out)["model.safetensors"] == content(tmp_path / "local")["model.safetensors"]
    assert hub.fetched("optimizer.pt") == 0
    record = json.loads((out / "fastmerge.json").read_text())
    assert record["models"]["math"]["source"] == f"org/math@{hub.commit('org/math')}"
    assert "was trained on" not in merged.stdout

    sent = len(hub.sent)
    again = fastmerge(hub, home, "merge", *call, "--out", str(tmp_path / "again"), HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr
    assert len(hub.sent) == sent
    assert content(tmp_path / "again")["model.safetensors"] == content(out)["model.safetensors"]
    checked = fastmerge(hub, home, "verify", str(out), HF_HUB_OFFLINE="1")
    assert checked.returncode == 0, checked.stderr


def test_all_that_cannot_be_had_is_told_at_once(hub: Hub, tmp_path: Path) -> None:
    models = {
        "none": "org/none",
        "secret": "org/secret",
        "late": "org/base@v9",
        "pickle": "org/pickle",
    }
    options = [text for name, place in models.items() for text in ("--model", f"{name}={place}")]
    done = fastmerge(hub, tmp_path / "home", "plan", "linear", *options, "--json")
    assert done.returncode == 2
    none, secret, late, pickle = json.loads(done.stdout)["problems"]
    assert none.startswith("none: org/none is no folder here, nor a model of the Hub")
    assert "hf auth login" in secret
    assert "no such revision" in late
    assert "org/pickle: holds pytorch_model.bin" in pickle
    assert "save_pretrained" in pickle
    assert hub.fetched("pytorch_model.bin") == 0


def test_what_only_the_cache_lacks_says_so(hub: Hub, tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert fastmerge(hub, home, "plan", "linear", "--model", "a=org/math").returncode == 0
    done = fastmerge(hub, home, "plan", "linear", "--model", "a=org/math", HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert "the Hub could not be asked" in done.stderr


def test_a_local_path_wins_over_an_id(hub: Hub, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(hub.root / "org" / "base", home / "org" / "base")
    done = fastmerge(hub, home, "plan", "linear", "--model", "a=org/base", "--model", "b=org/base+org/lora", "--json")
    assert done.returncode == 2  # with a folder org here, org/lora is a path too
    assert "org/lora does not exist" in done.stdout
    assert not hub.sent
    assert fastmerge(hub, home, "plan", "linear", "--model", "a=org/base").returncode == 0
    assert not hub.sent


def test_a_damaged_file_is_known_by_its_header(hub: Hub, tmp_path: Path) -> None:
    file = hub.root / "org" / "base" / "model.safetensors"
    file.write_bytes(file.read_bytes() + bytes(torch.iinfo(torch.uint8).max))
    done = fastmerge(hub, tmp_path / "home", "plan", "linear", "--model", "a=org/base")
    assert done.returncode == 2
    assert "stray bytes" in done.stderr
    assert hub.fetched("model.safetensors") == FIRST
