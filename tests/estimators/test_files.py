import json
import os
import pickle
import random
from functools import cache
from pathlib import Path

import pytest
import torch

from sbi_core import InputError, Parameter, Simulations, StoreError, infer, simulate
from sbi_core.estimators import Estimator, RatioEstimator, alices, fit, load_estimator
from sbi_core.seeding import seeded
from sbi_core.simulators import GaltonBoard, LinearGaussian


@cache
def trained(kind="gaussian"):
    """A trained estimator and rows to try it on."""
    world, design = LinearGaussian(2), None
    if kind == "board":
        world = GaltonBoard()
        with seeded(1):
            design = torch.stack([torch.randint(5, 25, (100,)), torch.randint(10, 21, (100,))], 1)
    data = simulate(world, 100, seed=1, design=design, progress=False)
    head = RatioEstimator.from_data(data, hidden=(5, 4))
    return fit(head, alices, data, simulator=world, seed=1, max_epochs=2, progress=False).estimator, data


def other():
    """Another seed's estimator."""
    data = trained()[1]
    options = {"simulator": LinearGaussian(2), "seed": 2, "max_epochs": 1, "progress": False}
    return fit(RatioEstimator.from_data(data), alices, data, **options).estimator


def values(estimator, data):
    with torch.no_grad():
        return estimator.log_likelihood(data.theta, data.x, data.design if estimator.designs else None)


def files(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@pytest.mark.parametrize("kind", ["gaussian", "board"])
def test_round_trip(tmp_path, kind):
    estimator, data = trained(kind)
    assert estimator.save(tmp_path / "deep" / "model") == tmp_path / "deep" / "model"
    back = load_estimator(tmp_path / "deep" / "model")
    assert torch.equal(values(back, data), values(estimator, data))
    assert not torch.equal(values(back, data), values(back, Simulations.concat([data[50:], data[:50]])))
    assert type(back) is RatioEstimator and back.trained and not back.training
    for name in ("axes", "designs", "x_shape", "categories", "options", "provenance"):
        assert getattr(back, name) == getattr(estimator, name), name
    assert back.state_dict().keys() == estimator.state_dict().keys()
    assert all(torch.equal(back.state_dict()[key], value) for key, value in estimator.state_dict().items())


def test_untrained_estimators_and_open_ranges_are_kept(tmp_path):
    axes = (Parameter("mu", -torch.inf, torch.inf, unit="GeV", latex=r"\mu"), Parameter("n", 0, 5, integer=True))
    back = load_estimator(RatioEstimator(axes, (3, 2)).save(tmp_path))
    assert back.axes == axes and not back.trained and back.x_shape == (3, 2)


def test_what_lies_in_the_folder(tmp_path, monkeypatch):
    """Weights and plain text; neither writing nor reading touches pickle."""

    def forbidden(*arguments, **options):
        raise AssertionError("pickle was used")

    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, forbidden)
    for name in ("load", "save"):
        monkeypatch.setattr(torch, name, forbidden)
    estimator, data = trained()
    estimator.save(tmp_path)
    assert torch.equal(values(load_estimator(tmp_path), data), values(estimator, data))
    assert sorted(Path(name).suffix for name in files(tmp_path)) == [".json", ".safetensors"]
    text = json.loads((tmp_path / "model.json").read_text())
    assert text["format"] == 1 and text["packages"]["torch"] and len(text["weights_sha256"]) == 64
    assert [axis["name"] for axis in text["estimator"]["parameters"]] == ["theta_1", "theta_2"]
    assert text["provenance"]["loss"] == "alices"


def test_equal_estimators_give_equal_files(tmp_path):
    estimator = trained()[0]
    assert files(estimator.save(tmp_path / "a")) == files(estimator.save(tmp_path / "b"))
    assert files(estimator.save(tmp_path / "a")) != files(other().save(tmp_path / "b")), "saboteur: other weights"


def refused(folder, part):
    """Whether loading fails with an error that names the file."""
    try:
        load_estimator(folder)
    except StoreError as error:
        return str(folder / part) in str(error)
    return False


def flips(folder, part, count, seed=0):
    """Flip one random bit of a file, `count` times: how often that is refused, or changes nothing that is read."""
    path = next(folder.glob(part))
    good, rng, found = path.read_bytes(), random.Random(seed), 0
    intact = json.loads(good) if path.suffix == ".json" else None
    for _ in range(count):
        bad, place = bytearray(good), rng.randrange(len(good))
        bad[place] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        found += refused(folder, path.name) or (intact is not None and same_text(bad, intact))
    path.write_bytes(good)
    return found


def same_text(bad, intact):
    """Whether JSON still says the same (1e-05 written as 1E-05)."""
    try:
        return json.loads(bad) == intact
    except ValueError:
        return False


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("part", ["model.json", "weights-*.safetensors"])
def test_a_flipped_bit_is_refused(tmp_path, part, count):
    estimator, data = trained()
    estimator.save(tmp_path)
    assert flips(tmp_path, part, count) == count
    assert torch.equal(values(load_estimator(tmp_path), data), values(estimator, data)), "the good file loads again"


@pytest.mark.parametrize("part", ["model.json", "weights-*.safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path, part, kept):
    trained()[0].save(tmp_path)
    path = next(tmp_path.glob(part))
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    assert refused(tmp_path, path.name)


@pytest.mark.parametrize("part", ["model.json", "weights-*.safetensors"])
def test_a_missing_file_is_refused(tmp_path, part):
    trained()[0].save(tmp_path)
    path = next(tmp_path.glob(part))
    path.unlink()
    with pytest.raises(StoreError) as caught:
        load_estimator(tmp_path)
    assert str(tmp_path) in str(caught.value) and path.name in str(caught.value) and "missing" in str(caught.value)


def test_what_is_no_folder_is_refused(tmp_path):
    file = trained()[0].save(tmp_path) / "model.json"
    for path in (tmp_path / "nowhere", file):
        with pytest.raises(StoreError, match="holds no model") as caught:
            load_estimator(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "[1]", "3", "null", '"text"', "{}", '{"sha256": 1}', "\x00\xff"])
def test_other_text_is_refused(tmp_path, text):
    trained()[0].save(tmp_path)
    (tmp_path / "model.json").write_bytes(text.encode("latin-1"))
    assert refused(tmp_path, "model.json")


@pytest.mark.parametrize(
    ("key", "value"), [("estimator", {}), ("weights_sha256", "0" * 64), ("provenance", {}), ("packages", {})]
)
def test_altered_text_is_refused(tmp_path, key, value):
    path = trained()[0].save(tmp_path) / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    assert refused(tmp_path, "model.json")


@pytest.mark.parametrize("version", [0, 2, None, "1"])
def test_another_format_is_refused_by_its_number(tmp_path, version):
    path = trained()[0].save(tmp_path) / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": version}))
    with pytest.raises(StoreError, match=f"format version found {version}, supported 1") as caught:
        load_estimator(tmp_path)
    assert str(path) in str(caught.value)


def test_weights_of_another_estimator_are_refused(tmp_path):
    trained()[0].save(tmp_path / "a")
    other().save(tmp_path / "b")
    mine, theirs = (next((tmp_path / name).glob("weights-*")) for name in "ab")
    mine.write_bytes(theirs.read_bytes())
    assert refused(tmp_path / "a", mine.name)


def test_a_head_of_ones_own_is_found_by_its_name(tmp_path):
    class Flat(Estimator):
        def observe(self, x, design=None):
            return lambda theta: torch.zeros(theta.shape[:-1])

        def adapt(self, rows):
            return []

        def reset(self):
            pass

    assert type(load_estimator(Flat.from_data(trained()[1]).save(tmp_path))) is Flat


def test_an_unknown_class_is_named(tmp_path):
    estimator = RatioEstimator.from_data(trained()[1])
    estimator.describe = lambda: RatioEstimator.describe(estimator) | {"class": "os.system"}
    with pytest.raises(InputError, match=r"unknown estimator class 'os.system'; known: .*RatioEstimator"):
        load_estimator(estimator.save(tmp_path))


def test_saving_again_replaces(tmp_path):
    (first, data), second = trained(), other()
    first.save(tmp_path)
    second.save(tmp_path)
    assert torch.equal(values(load_estimator(tmp_path), data), values(second, data))
    assert len(files(tmp_path)) == 2, "the old weights are gone"


@pytest.mark.parametrize("broken", ["weights", "model.json"])
@pytest.mark.parametrize("moment", ["written", "flushed", "renamed"])
def test_f54_the_old_model_survives_a_full_disk(tmp_path, monkeypatch, broken, moment):
    (first, data), second = trained(), other()
    first.save(tmp_path)
    before, writes = files(tmp_path), []

    def full(*arguments, **options):
        writes.append(arguments)
        if len(writes) > (broken == "model.json"):
            raise OSError(28, "No space left on device")
        return act(*arguments, **options)

    with monkeypatch.context() as patch:
        if moment == "renamed":
            act = Path.replace
            patch.setattr(Path, "replace", full)
        elif moment == "flushed":
            act = os.fsync
            patch.setattr(os, "fsync", full)
        else:
            act = open
            patch.setattr("sbi_core.estimators.files.open", full, raising=False)
        with pytest.raises(StoreError, match=r"needs \d+ bytes.*as it was") as caught:
            second.save(tmp_path)
    assert "No space left" in str(caught.value) and str(tmp_path / broken) in str(caught.value)
    assert files(tmp_path) == before, "nothing is left behind"
    second.save(tmp_path)
    assert torch.equal(values(load_estimator(tmp_path), data), values(second, data)) and files(tmp_path) != before


def test_f54_a_file_that_may_not_grow(tmp_path):
    """The operating system's own refusal, after some bytes."""
    resource = pytest.importorskip("resource")
    first, second = trained()[0], other()
    before = files(first.save(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        with pytest.raises(StoreError, match=r"File too large.*needs \d+ bytes"):
            second.save(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(tmp_path) == before


def test_f60_the_file_says_what_it_is(tmp_path):
    text = json.loads((trained("board")[0].save(tmp_path) / "model.json").read_text())
    assert text["format"] == 1 and text["packages"]["sbi-core"] and text["packages"]["torch"]
    assert text["git"] is None or len(text["git"].removesuffix("-dirty")) == 40
    assert [axis["name"] for axis in text["estimator"]["designs"]] and text["estimator"]["x_shape"] == [1]
    assert text["provenance"]["simulator"] == "GaltonBoard" and text["provenance"]["campaign_seed"] == 1


def test_f60_another_layout_of_x_is_named(tmp_path):
    back = load_estimator(trained()[0].save(tmp_path))
    with pytest.raises(InputError, match=r"x_obs has shape \(3,\), expected \(2,\)"):
        infer(back, LinearGaussian(2).prior, [0.0, 0.0, 0.0])
