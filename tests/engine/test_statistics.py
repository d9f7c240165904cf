"""Statistics kept beside the output: what is known of the same inputs is not gathered again; damage is not believed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from folders import content, family, read, write

import fastmerge as fm
from fastmerge import ops
from fastmerge.engine import statistics_file
from fastmerge.engine.statistics import Kept
from fastmerge.errors import MergeError
from fastmerge.methods._declaration import Block, Method, Pass, Statistics

Models = tuple[Path, dict[str, Path]]


class Measured(Method):
    """Weighs models by their mean magnitude, which depends on the inputs alone, and scales."""

    name = "measured"
    source = "this test"

    scale: float = 1.0

    def passes(self, models: Sequence[str], wide: bool = False) -> tuple[Pass, ...]:
        def measure(block: Block, _: Sequence[Statistics]) -> None:
            assert block.base is not None
            ops.moments(block.base, block.models, sums=block.sums)

        def merge(block: Block, earlier: Sequence[Statistics]) -> None:
            magnitudes = earlier[0].total(0)
            weights = [m / sum(magnitudes) for m in magnitudes]
            result = ops.combine(block.base, block.models, weights, scale=self.scale, out=block.merged)
            block.nonfinite += result.nonfinite

        return (Pass(measure, rows=4, statistic="moments"), Pass(merge, writes=("merged",)))


@pytest.fixture
def models(tmp_path: Path) -> Models:
    return family(tmp_path / "models")


def kept_file(folder: Path) -> Path:
    (file,) = (folder / ".fastmerge").iterdir()
    return file


def test_another_scale_skips_the_first_pass(models: Models, tmp_path: Path) -> None:
    """Half is read, and the bytes are those of a merge that has read all."""
    first = fm.merge(Measured(), *models, tmp_path / "one")
    second = fm.merge(Measured(scale=0.5), *models, tmp_path / "two")
    assert second.bytes_read * 2 == first.bytes_read
    fm.merge(Measured(scale=0.5), *models, tmp_path / "elsewhere" / "two")
    assert content(tmp_path / "two") == content(tmp_path / "elsewhere" / "two")


def test_only_what_is_not_known_is_read(models: Models, tmp_path: Path) -> None:
    """Tensors that were kept out of the first merge are measured by the second."""
    partly = fm.merge(Measured(), *models, tmp_path / "one", task_specific=["layers.*"])
    whole = fm.merge(Measured(), *models, tmp_path / "elsewhere" / "out")
    second = fm.merge(Measured(), *models, tmp_path / "out")
    assert whole.bytes_read / 2 < second.bytes_read < whole.bytes_read
    assert partly.bytes_read > 0
    assert content(tmp_path / "out") == content(tmp_path / "elsewhere" / "out")


def test_several_outputs_share_them(models: Models, tmp_path: Path) -> None:
    fm.merge(Measured(), *models, tmp_path / "one")
    several = fm.merge(Measured(), *models, tmp_path / "two", outputs={"a": {}, "b": {}})
    assert several.bytes_read * 2 == fm.merge(Measured(), *models, tmp_path / "new" / "one").bytes_read


def touched(models: Models) -> Models:
    os.utime(models[1]["m0"] / "model.safetensors", ns=(0, 0))
    return models


def reordered(models: Models) -> Models:
    return models[0], dict(reversed(models[1].items()))


def copied(models: Models) -> Models:
    copy = Path(shutil.copytree(models[0], models[0].with_name("copy")))
    return copy, models[1]


@pytest.mark.parametrize("change", [touched, reordered, copied])
def test_other_inputs(change: Callable[[Models], Models], models: Models, tmp_path: Path) -> None:
    """Statistics of other files, or of another order, are not taken for these."""
    first = fm.merge(Measured(), *models, tmp_path / "one")
    changed = change(models)
    second = fm.merge(Measured(), *changed, tmp_path / "two")
    assert second.bytes_read == first.bytes_read
    assert len(list((tmp_path / ".fastmerge").iterdir())) == (1 if change is touched else 2)


@pytest.mark.parametrize("gone", [True, False], ids=["gone", "written to"])
def test_what_nobody_can_use_any_more_is_removed(gone: bool, models: Models, tmp_path: Path) -> None:
    """With the next statistics that are written: of inputs that are gone, or have changed, and of no others."""
    other = copied(models)
    fm.merge(Measured(), *models, tmp_path / "one")
    past = kept_file(tmp_path)
    strange = [past.with_name(name) for name in ("mine.txt", "statistics-mine.safetensors")]
    for file in strange:
        file.write_text("mine")
    if gone:
        shutil.rmtree(models[0])
    else:
        touched(models)
    fm.merge(Measured(), *other, tmp_path / "two")
    left = {*past.parent.iterdir()} - {*strange}
    assert len(left) == 1
    assert past not in left
    assert all(file.exists() for file in strange)


def test_damage_is_not_believed(models: Models, tmp_path: Path) -> None:
    """Whatever bytes of the file are others, it is not used, a note says so, and the result is the same."""
    first = fm.merge(Measured(), *models, tmp_path / "one")
    file, expected = kept_file(tmp_path), content(tmp_path / "one")
    whole = file.read_bytes()
    places = [0, 9, whole.index(b"moments:") + 9, whole.index(b"F64") + 1, 4096, len(whole) - 1]
    damaged = [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in places]
    for number, data in enumerate([*damaged, whole[:-8], b"", b"{}"]):
        file.write_bytes(data)
        report = fm.merge(Measured(), *models, tmp_path / "one", overwrite=True)
        assert report.bytes_read == first.bytes_read, f"damage {number} was believed"
        assert any("gathered anew" in note for note in report.notes)
        assert content(tmp_path / "one") == expected
        assert file.read_bytes() == whole


def test_statistics_of_others_are_not_believed(models: Models, tmp_path: Path) -> None:
    """A whole file under the name of another."""
    fm.merge(Measured(), *models, tmp_path / "one")
    file = kept_file(tmp_path)
    changed = reordered(models)
    fm.merge(Measured(), *changed, tmp_path / "two")
    (other,) = set((tmp_path / ".fastmerge").iterdir()) - {file}
    file.replace(other)
    assert any("not of these inputs" in n for n in fm.merge(Measured(), *changed, tmp_path / "three").notes)


@pytest.mark.parametrize("shape", [(3, 3), (4, 2)])
def test_other_shapes_are_not_believed(shape: tuple[int, ...], models: Models, tmp_path: Path) -> None:
    """A file as it should be, of sums that are not what the pass sums up."""
    first = fm.merge(Measured(), *models, tmp_path / "one")
    file = kept_file(tmp_path)
    key = file.stem.removeprefix("statistics-")
    odd = Kept({("moments", name): torch.zeros(shape, dtype=torch.float64) for name in read(models[0])})
    statistics_file.save(odd, file, key, [], tmp_path / "scratch")
    assert fm.merge(Measured(), *models, tmp_path / "two").bytes_read == first.bytes_read
    assert content(tmp_path / "one").keys() == content(tmp_path / "two").keys()


def test_a_limit(models: Models, tmp_path: Path) -> None:
    """No more is kept than fits."""
    kept = Kept(limit=100)
    kept.put("a", "x", torch.zeros(10, dtype=torch.float64))
    kept.put("a", "y", torch.zeros(10, dtype=torch.float64))
    kept.put("a", "x", torch.ones(12, dtype=torch.float64))
    assert [name for _, name in kept.found] == ["x"]
    assert kept.found["a", "x"].sum() == 12
    assert kept.limit == 4


def test_nothing_is_kept_where_nothing_is_gathered(models: Models, tmp_path: Path) -> None:
    fm.merge("emr", *models, tmp_path / "out")
    assert not (tmp_path / ".fastmerge").exists()


def test_a_full_disk_does_not_matter(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics that cannot be kept are a note, not a failure, and leave no file."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(statistics_file, "fsync_all", full)
    report = fm.merge(Measured(), *models, tmp_path / "out")
    assert "statistics are not kept: No space left on device" in report.notes
    assert [path.name for path in tmp_path.rglob("*statistics*")] == []


def test_a_known_nan_is_named_all_the_same(models: Models, tmp_path: Path) -> None:
    base, folders = models
    broken = read(folders["m1"])
    broken["norm.weight"][3] = float("nan")
    folders["m1"] = write(tmp_path / "broken", broken)
    fm.merge(Measured(nonfinite="allow"), base, folders, tmp_path / "out")
    with pytest.raises(MergeError, match=r"'norm\.weight'.*m1"):
        fm.merge(Measured(), base, folders, tmp_path / "two")


def test_a_resumed_merge_keeps_them(models: Models, tmp_path: Path) -> None:
    """Also those that were summed up before it was stopped; and passes that were finished are not read again."""
    whole = fm.merge(Measured(), *models, tmp_path / "new" / "out")
    read_bytes = 0

    def stop(nbytes: int) -> None:
        nonlocal read_bytes
        read_bytes += nbytes
        if read_bytes > whole.bytes_read / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fm.merge(Measured(), *models, tmp_path / "out", progress=stop)
    again = fm.merge(Measured(), *models, tmp_path / "out", resume=True)
    assert again.bytes_read <= whole.bytes_read / 2
    assert content(tmp_path / "out") == content(tmp_path / "new" / "out")
    assert kept_file(tmp_path).read_bytes() == kept_file(tmp_path / "new").read_bytes()


def test_another_scale_needs_no_cuts(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trimming looks at each tensor before it merges; where the cuts of a density are kept, it does not."""
    fm.merge("ties", *models, tmp_path / "elsewhere" / "two", {"density": 0.5, "scale": 0.1})
    fm.merge("ties", *models, tmp_path / "one", {"density": 0.2})
    fm.merge("ties", *models, tmp_path / "half", {"density": 0.5})
    monkeypatch.setattr(ops, "kth_magnitude", None)
    fm.merge("ties", *models, tmp_path / "two", {"density": 0.5, "scale": 0.1})
    assert content(tmp_path / "two") == content(tmp_path / "elsewhere" / "two")


def test_another_global_density_skips_a_pass(models: Models, tmp_path: Path) -> None:
    first = fm.merge("ties", *models, tmp_path / "one", {"scope": "global"})
    fm.merge("ties", *models, tmp_path / "elsewhere" / "two", {"scope": "global", "density": 0.5})
    second = fm.merge("ties", *models, tmp_path / "two", {"scope": "global", "density": 0.5})
    assert second.bytes_read * 4 == first.bytes_read * 3
    assert content(tmp_path / "two") == content(tmp_path / "elsewhere" / "two")


def test_what_cannot_be_looked_at_does_not_matter(as_nobody: Path) -> None:
    """A note, and the same result."""
    models = family(as_nobody / "models")
    fm.merge(Measured(), *models, as_nobody / "one")
    (as_nobody / ".fastmerge").chmod(0o000)
    report = fm.merge(Measured(), *models, as_nobody / "two")
    assert any("gathered anew" in note for note in report.notes)
    assert content(as_nobody / "two")["model.safetensors"] == content(as_nobody / "one")["model.safetensors"]
