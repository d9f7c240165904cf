"""Algorithms for FusionBench: on its model pools, as its own where both compute the same, and by its command line."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from folders import near, state
from tensors import assert_same_bits
from tokenizers_on_disk import write_tokenizer
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import fastmerge as fm
from fastmerge.errors import InputError

pytest.importorskip("fusion_bench", reason="fusion-bench is not installed")

from fastmerge.bindings import fusion_bench as bound
from fusion_bench import BaseModelPool
from fusion_bench.method import TaskArithmeticAlgorithm, TiesMergingAlgorithm
from fusion_bench.method.emr_merging import EMRMerging
from fusion_bench.method.isotropic_merging.iso_utils import iso_c, iso_cts
from fusion_bench.modelpool import CausalLMPool, CLIPVisionModelPool
from fusion_bench.utils import instantiate
from omegaconf import OmegaConf

CONFIG = Path(bound.__file__).parent / "config" / "method" / "fastmerge"
TASKS = ("art", "law", "map")


class Small(nn.Module):
    """Tied weights, a buffer of integers, a head."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed, self.body, self.out = nn.Embedding(9, 12), nn.Linear(12, 12), nn.Linear(12, 9, bias=False)
        self.out.weight = self.embed.weight
        self.head = nn.Linear(9, 4)
        self.register_buffer("positions", torch.arange(5))

    def forward(self, ids: Tensor) -> Any:
        return self.head(self.out(self.body(self.embed(ids)).tanh()).mean(1))


def pool(**others: Any) -> BaseModelPool:
    base = Small(0)
    models = {"_pretrained_": base}
    for seed, task in enumerate(TASKS, 1):
        models[task] = copy.deepcopy(base)
        with torch.no_grad():
            for p, other in zip(models[task].parameters(), Small(seed).parameters(), strict=True):
                p.add_(other, alpha=0.1)
    return BaseModelPool(models, **others)


def states(models: BaseModelPool) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    base, *others = (tensors(models.load_model(model)) for model in ("_pretrained_", *TASKS))
    return base, dict(zip(TASKS, others, strict=True))


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all, tied ones once."""
    return {name: t.detach().clone() for name, t in (*model.named_parameters(), *model.named_buffers())}


def assert_equal(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name in expected:
        assert_same_bits(actual[name], expected[name], name)


def configured(name: str, **changed: Any) -> Any:
    return instantiate(OmegaConf.merge(OmegaConf.load(CONFIG / f"{name}.yaml"), changed))


MERGES = {
    "fr": ("fr", {"cutoff": 0.3}),
    "task_arithmetic": ("task_arithmetic", {"scale": 0.3}),
    "ties": ("ties", {"scale": 0.3, "density": 0.2, "scope": "global", "vote": "unweighted", "merge": "sum"}),
    "merge": ("della", {"seed": 7}),
}


@pytest.mark.parametrize("name", MERGES)
def test_merges_as_fastmerge_does(name: str) -> None:
    method, params = MERGES[name]
    models = pool()
    expected = fm.merge_state_dicts(method, *states(models), **params).state_dict
    chosen = {"method": method, **params} if name == "merge" else {}
    merged = configured(name, inplace=False, **chosen).run(models)
    assert_equal(tensors(merged), expected)
    assert_equal(tensors(models.load_model("_pretrained_")), states(pool())[0])
    assert configured(name, **chosen).run(models) is models.load_model("_pretrained_")
    assert_equal(tensors(models.load_model("_pretrained_")), expected)


@pytest.mark.parametrize("name", ["emr", "free"])
def test_tasks_are_set_to_the_bit(name: str) -> None:
    """In any order, with heads of their own, and again after the model was saved and loaded."""
    models = pool()
    params = {"cutoff": 0.3, "expert_density": 0.1} if name == "free" else {}
    expected = fm.merge_state_dicts(name, *states(models), task_specific=["head.*"], **params)
    model = configured(name, task_specific=["head.*"], **({"expert_density": 0.1} if params else {})).run(models)
    assert not any(p.requires_grad for key, p in model.named_parameters() if not key.startswith("backbone"))
    other = configured(name, task_specific=["head.*"], **({"expert_density": 0.1} if params else {})).run(pool())
    saved = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    model.set_task("map")
    assert_equal(model.state_dict(), saved)  # whatever task is set
    assert_equal(tensors(model.backbone), expected.task("map"))
    other.set_task("art")
    other.load_state_dict(model.state_dict())
    for task in ("law", "art", "law", "map"):
        for one in (model, other):
            one.set_task(task)
            assert one.current_task == task
            assert_equal(tensors(one.backbone), expected.task(task))
    without = states(pool())[0] if name == "emr" else expected.state_dict
    model.modulators["map"].remove(model)
    assert_equal(tensors(model.backbone), without)
    assert model.current_task is None


def test_task_arithmetic_is_fusion_benchs() -> None:
    own = configured("task_arithmetic").run(pool())
    assert_equal(own.state_dict(), TaskArithmeticAlgorithm(scaling_factor=0.3).run(pool()).state_dict())


@pytest.mark.parametrize("merge_func", ["sum", "mean"])
def test_ties_is_fusion_benchs_but_for_one_element_a_model(merge_func: str) -> None:
    """FusionBench keeps one more than threshold · n; with one more, all is the same."""
    models = untied(pool())
    n = sum(p.numel() for p in models.load_model("_pretrained_").parameters())
    more = configured("ties", threshold=(int(n * 0.2) + 1.5) / n, merge_func=merge_func, inplace=False).run(models)
    ours = configured("ties", merge_func=merge_func, inplace=False).run(models)
    its = TiesMergingAlgorithm(scaling_factor=0.3, threshold=20, remove_keys=[], merge_func=merge_func).run(models)
    differing = 0
    for name, tensor in its.state_dict().items():
        torch.testing.assert_close(more.state_dict()[name], tensor, rtol=1e-6, atol=1e-7)
        differing += int((~ours.state_dict()[name].isclose(tensor, rtol=1e-6, atol=1e-7)).sum())
    assert 0 < differing <= len(TASKS)


def test_ties_leaves_keys_out() -> None:
    """They stay the pre-trained model's, and count not among the elements that are trimmed; unknown ones are none."""
    base, models = states(pool())
    without = [{name: t for name, t in state.items() if name != "body.weight"} for state in (base, *models.values())]
    expected = fm.merge_state_dicts("ties", without[0], dict(zip(TASKS, without[1:], strict=True)), **MERGES["ties"][1])
    merged = tensors(configured("ties", remove_keys=["body.weight", "none"]).run(pool()))
    assert_same_bits(merged.pop("body.weight"), base["body.weight"], "body.weight")
    assert_equal(merged, expected.state_dict)


def untied(models: BaseModelPool) -> BaseModelPool:
    """Without what FusionBench's TIES takes for more of the vector: tied weights twice, integers as numbers."""
    for model in models._models.values():
        model.out = nn.Identity()
        del model.positions
    return models


def test_emr_is_fusion_benchs() -> None:
    """With its rescalers, which are of means by tensor."""
    own = configured("emr", rescale="mean_of_means").run(untied(pool()))
    its = EMRMerging().run(untied(pool()))
    for task in ("law", "art"):
        own.set_task(task)
        its.set_task(task)
        for name, tensor in its.backbone.state_dict().items():
            torch.testing.assert_close(own.backbone.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_isotropic_merging_is_fusion_benchs(count: int) -> None:
    """Of matrices of full rank; of others FusionBench fills the rest with directions by chance."""
    shapes = {"layers.0.weight": (40, 64), "layers.1.weight": (70, 33), "norm.bias": (17,)}
    base = state(0, torch.float64, shapes)
    models = {f"m{k}": near(base, k + 1) for k in range(count)}
    taus = [{name: tensor - base[name] for name, tensor in model.items()} for model in models.values()]
    for method, expected in (("iso_c", iso_c(taus, "cpu")), ("iso_cts", iso_cts(taus, 0.8, "cpu"))):
        merged = fm.merge_state_dicts(method, base, models, scale=1.3).state_dict
        for name, tensor in merged.items():
            torch.testing.assert_close(tensor - base[name], 1.3 * expected[name], rtol=0, atol=1e-12)


def data(seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(
        torch.randint(0, 9, (20, 6), generator=generator), torch.randint(0, 4, (20,), generator=generator)
    )


def test_frank_wolfe_is_fastmerges(monkeypatch: pytest.MonkeyPatch) -> None:
    named = ModuleType("data_of_this_test")
    named.data = data
    monkeypatch.setitem(sys.modules, named.__name__, named)
    sets = {task: {"_target_": "data_of_this_test.data", "seed": i} for i, task in enumerate(TASKS)}
    models = pool(train_datasets=OmegaConf.create(sets))
    base, others = states(models)
    expected = Small(0)
    tasks = {task: torch.utils.data.DataLoader(data(i), 16) for i, task in enumerate(TASKS)}
    result = fm.frank_wolfe(expected, others, fm.fw.cross_entropy, tasks, steps=3, variant="soft")
    merged = configured("frank_wolfe", steps=3, variant="soft").run(models)
    assert len(result.steps) > 0
    assert_equal(tensors(merged), tensors(expected))
    assert not tensors(merged)["body.weight"].equal(base["body.weight"])


CLIP_TASKS = ("mnist", "svhn")


def images(seed: int) -> list[dict[str, Any]]:
    from PIL import Image

    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (12, 16, 16, 3), generator=generator, dtype=torch.uint8)
    return [{"image": Image.fromarray(own.numpy()), "label": i % 10} for i, own in enumerate(pixels)]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIP's base and two vision models, and a processor, on disk."""
    from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(c) for c in range(33, 127)]
    write_tokenizer(folder / "tokenizer", [*letters, "Ġ"], ["<|startoftext|>", "<|endoftext|>"])
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", eos_token="<|endoftext|>")
    tokenizer.pad_token = "<|endoftext|>"
    sides = {"height": 16, "width": 16}
    processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=sides)
    CLIPProcessor(processor, tokenizer).save_pretrained(folder / "processor")
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = small | {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    vision = small | {"image_size": 16, "patch_size": 4}
    for seed, name in enumerate(("_pretrained_", *CLIP_TASKS)):
        torch.manual_seed(seed)
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder / name)
    return folder


def clip_pool(folder: Path, monkeypatch: pytest.MonkeyPatch, **others: Any) -> CLIPVisionModelPool:
    named = ModuleType("images_of_this_test")
    named.images = images
    monkeypatch.setitem(sys.modules, named.__name__, named)
    sets = {task: {"_target_": "images_of_this_test.images", "seed": i} for i, task in enumerate(CLIP_TASKS)}
    models = OmegaConf.create({name: str(folder / name) for name in ("_pretrained_", *CLIP_TASKS)})
    given = {"processor": str(folder / "processor"), "train_datasets": OmegaConf.create(sets)} | others
    return CLIPVisionModelPool(models, **given)


@pytest.mark.parametrize("loss", ["cross_entropy", "entropy"])
def test_frank_wolfe_of_clip(loss: str, clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a head at all: the logits are those of FusionBench's classifier, the result fastmerge's with them."""
    from fusion_bench.models.hf_clip import HFCLIPClassifier
    from fusion_bench.tasks.clip_classification import get_classnames_and_templates
    from transformers import CLIPVisionModel

    models = clip_pool(clips, monkeypatch)
    processor, vision = models.load_processor(), CLIPVisionModel.from_pretrained(clips / "_pretrained_")
    classifiers, batches = {}, {}
    for i, task in enumerate(CLIP_TASKS):
        classifiers[task] = HFCLIPClassifier(models.load_clip_model("_pretrained_"), processor)
        classifiers[task].set_classification_task(*get_classnames_and_templates(task))
        pixels = processor(images=[own["image"] for own in images(i)], return_tensors="pt")["pixel_values"]
        batches[task] = [(pixels, torch.tensor([own["label"] for own in images(i)]))]

    class Classifier(nn.Module):
        def __init__(self, task: str, model: nn.Module) -> None:
            super().__init__()
            self.task, self.model = task, model

        def forward(self, pixels: Tensor) -> Tensor:
            classifiers[self.task].clip_model.vision_model = self.model
            return classifiers[self.task](pixels)

    named = getattr(fm.fw, loss)
    losses = {
        task: lambda model, batch, task=task: named(Classifier(task, model), batch)  # type: ignore[misc]
        for task in CLIP_TASKS
    }
    others = {task: CLIPVisionModel.from_pretrained(clips / task).state_dict() for task in CLIP_TASKS}
    expected = fm.frank_wolfe(vision, others, losses, batches, steps=2, variant="soft")
    merged = configured("frank_wolfe", loss=loss, steps=2, variant="soft").run(models)
    assert len(expected.steps) > 0
    for name, tensor in merged.state_dict().items():
        assert tensor.allclose(vision.state_dict()[name], atol=1e-5), name


def test_what_clip_cannot_do_is_told_before_a_model_is_loaded(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = OmegaConf.create({"mnst": {"_target_": "images_of_this_test.images", "seed": 0}})
    models = clip_pool(clips, monkeypatch, processor=None, train_datasets=sets)
    models._models = dict.fromkeys(("_pretrained_", *CLIP_TASKS), nn.Linear(1, 1))
    said = r"causal_lm is not of images(?s:.*)'mnst'.*'mnist'(?s:.*)folder of _pretrained_(?s:.*)processor"
    with pytest.raises(InputError, match=said):
        configured("frank_wolfe", loss="causal_lm").run(models)


@pytest.mark.parametrize("name", [*MERGES, "emr", "free", "frank_wolfe"])
def test_algorithms_are_written_as_they_were_configured(name: str, tmp_path: Path) -> None:
    chosen = {"method": "della"} if name == "merge" else {}
    algorithm = configured(name, **chosen)
    algorithm.to_yaml(tmp_path / "method.yaml")
    written = OmegaConf.load(tmp_path / "method.yaml")
    for key, value in OmegaConf.merge(OmegaConf.load(CONFIG / f"{name}.yaml"), chosen).items():
        assert key == "_target_" or written[key] == value, key
    assert type(instantiate(written)) is type(algorithm)


def test_problems_are_found_before_a_model_is_loaded() -> None:
    with pytest.raises(Exception, match=r"'cutof'.*did you mean 'cutoff'"):
        bound.FR(cutof=0.3)
    with pytest.raises(Exception, match="density"):
        bound.TIES(threshold=-1)
    with pytest.raises(InputError, match="merge_func: is 'max'; expected sum, mean, weighted_mean"):
        bound.TIES(merge_func="max")
    with pytest.raises(InputError, match=r"'stepz'.*steps(?s:.*)loss: is 'crossentropy'"):
        bound.FrankWolfe("crossentropy", stepz=3)
    with pytest.raises(InputError, match="_pretrained_"):
        bound.EMR().run({"art": Small(1)})
    with pytest.raises(InputError, match="train_datasets"):
        bound.FrankWolfe().run(pool())


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two models of Llama's kind on disk."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "art", "law")):
        torch.manual_seed(seed)
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
        LlamaForCausalLM(LlamaConfig(vocab_size=40, tie_word_embeddings=True, **sizes)).save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize("lazy", [False, True], ids=["loaded", "lazy"])
def test_language_models_from_disk(checkpoints: Path, lazy: bool, tmp_path: Path) -> None:
    """Give what fastmerge gives from the same files, and a model that computes."""
    paths = {"_pretrained_": checkpoints / "base", "art": checkpoints / "art", "law": checkpoints / "law"}
    models = CausalLMPool({k: str(v) for k, v in paths.items()}, tokenizer=None, enable_lazy_loading=lazy)
    merged = configured("task_arithmetic").run(models)
    fm.merge(
        "task_arithmetic", base=paths.pop("_pretrained_"), models=paths, out=tmp_path / "out", params={"scale": 0.3}
    )
    from transformers import AutoModelForCausalLM

    expected = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert_equal(merged.state_dict(), expected.state_dict())
    ids = torch.arange(10)[None]
    assert merged(ids).logits.equal(expected(ids).logits)


@pytest.mark.parametrize(
    ("name", "changed"), [("emr", {}), ("free", {}), ("merge", {"method": "magmax", "modulators": True})]
)
def test_models_with_tasks_are_not_saved_as_hugging_faces(
    checkpoints: Path, name: str, changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is said before a model is loaded."""
    paths = {"_pretrained_": str(checkpoints / "base"), "art": str(checkpoints / "art")}
    pool = CausalLMPool(paths, tokenizer=None)
    monkeypatch.delattr(CausalLMPool, "load_model")
    algorithm = configured(name, **changed)
    algorithm._program = SimpleNamespace(merged_model_save_path="out")
    with pytest.raises(
        InputError, match=rf"not those with tasks, which {changed.get('method', name)} gives; leave it out"
    ):
        algorithm.run(pool)


@pytest.mark.parametrize("name", ["emr", "free"])
def test_a_tasks_model_is_saved_as_hugging_faces(checkpoints: Path, name: str, tmp_path: Path) -> None:
    """By the way that is named where a model with all tasks cannot be: it is what `fastmerge task` writes."""
    paths = {own: str(checkpoints / own) for own in ("art", "law")}
    pool = CausalLMPool({"_pretrained_": str(checkpoints / "base"), **paths}, tokenizer=None)
    model = configured(name).run(pool)
    with pytest.raises(InputError, match=r"none of Hugging Face's; .* save_model\(model\.backbone, folder\)"):
        pool.save_model(model, str(tmp_path / "all"))
    assert not (tmp_path / "all").exists()
    fm.merge(name, base=checkpoints / "base", models=paths, out=tmp_path / "merged")
    from safetensors.torch import load_file

    for task in paths:
        model.set_task(task)
        pool.save_model(model.backbone, str(tmp_path / task))
        fm.task(tmp_path / "merged", task, tmp_path / f"{task}-again")
        saved, again = (load_file(tmp_path / own / "model.safetensors") for own in (task, f"{task}-again"))
        assert_equal(saved, again)


def test_command_line(checkpoints: Path, tmp_path: Path) -> None:
    """FusionBench's program finds the configuration, merges, saves and evaluates."""
    (tmp_path / "mine" / "modelpool").mkdir(parents=True)
    models = {"_pretrained_": "base", "art": "art", "law": "law"}
    config = {
        "_target_": "fusion_bench.modelpool.CausalLMPool",
        "models": {name: str(checkpoints / folder) for name, folder in models.items()},
        "tokenizer": None,
    }
    OmegaConf.save(OmegaConf.create(config), tmp_path / "mine" / "modelpool" / "small.yaml")
    searched = f"hydra.searchpath=[pkg://fastmerge.bindings.fusion_bench.config,file://{tmp_path / 'mine'}]"
    asked = ["method=fastmerge/fr", "method.cutoff=0.5", "modelpool=small", "taskpool=dummy", "fabric.accelerator=cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "fusion_bench.scripts.cli", searched, *asked, f"merged_model_save_path={tmp_path}/out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    others = {name: checkpoints / name for name in ("art", "law")}
    fm.merge("fr", base=checkpoints / "base", models=others, out=tmp_path / "same", params={"cutoff": 0.5})
    from safetensors.torch import load_file

    assert_equal(load_file(tmp_path / "out/model.safetensors"), load_file(tmp_path / "same/model.safetensors"))
