"""A training that was interrupted ends with the bits of one that was not."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from runs import bits, quick, rows

from sbi_core import SbiWarning, StoreError, TrainingError
from sbi_core.estimators import alice, alices, carl, checkpoints, load_estimator

SHORT = {"max_epochs": 6, "patience": 6, "batch_size": 50}


@pytest.fixture(autouse=True)
def _at_every_epoch(monkeypatch):
    monkeypatch.setattr(checkpoints, "SECONDS", 0.0)


def interrupted(loss, folder, after, **options):
    """Train with a loss that is interrupted from the keyboard after so many looks; the looks until then."""
    looks = []

    def callback(line):
        looks.append(line["epoch"])
        if len(looks) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quick(rows(), loss, checkpoint=folder, callback=callback, **SHORT | options)
    return looks


# F50 to F52: kill, Ctrl-C, another process


@pytest.mark.parametrize("loss", [carl, alice, alices])
def test_an_interrupted_training_goes_on_with_the_same_bits(tmp_path, loss):
    whole = quick(rows(), loss, **SHORT)
    assert interrupted(loss, tmp_path, after=3) == [1, 2, 3]
    assert interrupted(loss, tmp_path, after=2) == [3, 4], "from the checkpoint of epoch 2"
    resumed = quick(rows(), loss, checkpoint=tmp_path, **SHORT)
    assert bits(resumed) == bits(whole) and resumed.history == whole.history
    assert (resumed.best_epoch, resumed.ended) == (whole.best_epoch, whole.ended)
    assert bits(quick(rows(), loss, seed=2, **SHORT)) != bits(whole), "saboteur: another seed"


def test_a_finished_training_is_read_back(tmp_path):
    first, looks = quick(rows(), checkpoint=tmp_path, **SHORT), []
    again = quick(rows(), checkpoint=tmp_path, callback=looks.append, **SHORT)
    assert bits(first) == bits(again) and looks == [] and again.history == first.history


def test_without_a_seed_that_of_the_checkpoint_is_taken(tmp_path):
    first = quick(rows(), seed=None, checkpoint=tmp_path, **SHORT)
    assert quick(rows(), seed=None, checkpoint=tmp_path, **SHORT).seed == first.seed


PROGRAM = """
import sys, torch
from sbi_core import simulate
from sbi_core.estimators import RatioEstimator, alices, checkpoints, fit
from sbi_core.simulators import LinearGaussian
checkpoints.SECONDS = 0.0
torch.set_num_threads(1)
world = LinearGaussian(2)
data = simulate(world, 300, seed=1, progress=False)
head = RatioEstimator.from_data(data, hidden=(8,), regression=False)
run = fit(head, alices, data, simulator=world, seed=1, max_epochs=400, patience=400, batch_size=50,
          progress=False, checkpoint=sys.argv[1], callback=lambda line: print("look"))
run.estimator.save(sys.argv[2])
"""


def test_a_killed_training_goes_on_in_a_new_process(tmp_path):
    def start(state, model):
        command = [sys.executable, "-c", PROGRAM, tmp_path / state, tmp_path / model]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def epoch(path):
        return checkpoints._unpacked(path)[1]["epoch"] if path.exists() else 0

    whole, killed = start("a", "whole"), start("b", "killed")
    while epoch(tmp_path / "b" / "training.checkpoint") < 40:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL and not (tmp_path / "killed").exists()
    looks = [process.communicate()[0].count("look") for process in (whole, start("b", "killed"))]
    assert looks[0] == 50 and looks[1] <= 45, "at every eighth of 400 epochs; the second was spared the first 40"
    first, second = (load_estimator(tmp_path / name) for name in ("whole", "killed"))
    assert bits(first) == bits(second)


# What is refused


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 2}, "seed was 1, is 2"),
        ({"max_epochs": 7}, "epochs was 6, is 7"),
        ({"learning_rate": 1e-3}, "learning_rate was 0.003, is 0.001"),
        ({"contrasts": 3}, "contrasts was 2, is 3"),
        ({"hidden": (9,)}, "estimator was "),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(tmp_path, change, named):
    quick(rows(), checkpoint=tmp_path, **SHORT)
    with pytest.raises(TrainingError, match="is of another training") as caught:
        quick(rows(), checkpoint=tmp_path, **SHORT | change)
    assert named in str(caught.value)


def test_other_rows_and_losses_are_refused(tmp_path):
    quick(rows(), checkpoint=tmp_path, **SHORT)
    for data, loss, named in ((rows(seed=2), alices, "data_sha256 was"), (rows(), alice, "loss was alices, is alice")):
        with pytest.raises(TrainingError, match=named):
            quick(data, loss, checkpoint=tmp_path, **SHORT)


@pytest.mark.parametrize("place", [0.1, 0.5, 0.999])
def test_an_altered_or_truncated_checkpoint_is_refused(tmp_path, place):
    quick(rows(), checkpoint=tmp_path, **SHORT)
    path = tmp_path / "training.checkpoint"
    whole = path.read_bytes()
    at = int(place * len(whole))
    for content in (whole[:at], whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]):
        path.write_bytes(content)
        with pytest.raises(StoreError, match=r"training\.checkpoint is truncated or altered"):
            quick(rows(), checkpoint=tmp_path, **SHORT)


# F43, F55, F56: a loss that breaks down, a full disk, a folder that cannot be written


def test_a_loss_that_breaks_down_at_once_is_named():
    def broken(estimator, batch):
        return carl(estimator, batch) * torch.nan

    with pytest.raises(TrainingError, match=r"loss broken .*epoch 1 at learning_rate") as caught:
        quick(rows(), broken)
    assert caught.value.fit.ended == "trouble" and not caught.value.fit.estimator.trained
    assert "best weights" not in str(caught.value)


@pytest.mark.parametrize("kept", ["in memory", "on disk"])
def test_the_best_weights_survive_a_loss_that_breaks_down(tmp_path, kept):
    def broken(estimator, batch):
        value = carl(estimator, batch)
        steps.append(torch.is_grad_enabled())
        return value * torch.nan if sum(steps) > 18 else value  # 6 steps to the epoch

    steps = []
    with pytest.raises(TrainingError, match=r"loss broken is not finite in epoch 4 at learning_rate .*Lower") as caught:
        quick(rows(), broken, checkpoint=tmp_path if kept == "on disk" else None, **SHORT)
    found = caught.value.fit
    assert found.ended == "trouble" and 1 <= found.best_epoch <= 3 and found.history["epoch"] == [1, 2, 3, 4]
    best = load_estimator(tmp_path / "best") if kept == "on disk" else found.estimator
    assert bits(best) == bits(found) and best.trained
    expected = quick(rows(), carl, **SHORT | {"patience": 1000, "learning_rate": 3e-3})
    assert found.history["validation"][:3] == expected.history["validation"][:3]
    assert torch.isfinite(best.log_likelihood(rows().theta, rows().x)).all()


def test_whatever_a_learning_rate_of_a_thousand_does_finite_weights_are_kept():
    with pytest.raises(TrainingError, match=r"loss alices is not finite in epoch \d at learning_rate") as caught:
        quick(rows(), alices, learning_rate=1e3, **SHORT)
    found = caught.value.fit
    assert torch.isfinite(found.estimator.log_likelihood(rows().theta, rows().x)).all()


def test_a_full_disk_is_said_and_training_goes_on(tmp_path, monkeypatch):
    quick(rows(), checkpoint=tmp_path, **SHORT | {"max_epochs": 2})
    (tmp_path / "training.checkpoint").rename(tmp_path / "old")
    whole = quick(rows(), **SHORT)

    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(SbiWarning, match="the checkpoint of epoch 1 was not written: ") as said:
        run = quick(rows(), checkpoint=tmp_path, **SHORT)
    assert len(said) == 1 and bits(run) == bits(whole)
    assert all(part in run.flags[0] for part in (str(tmp_path), "No space left", "bytes"))
    assert run.estimator.provenance["flags"] == list(run.flags)
    assert [path.name for path in tmp_path.iterdir()] == ["old"], "nothing half-written"


def test_nothing_is_written_that_was_not_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick(rows(), **SHORT)
    assert list(tmp_path.iterdir()) == []
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.warns(SbiWarning, match="the checkpoint of epoch 1 was not written"):
        quick(rows(), checkpoint=blocked / "folder", **SHORT)


# Devices, callbacks


def test_a_callback_sees_the_history():
    lines = []
    run = quick(rows(), callback=lines.append, **SHORT)
    assert lines == [dict(zip(run.history, line, strict=True)) for line in zip(*run.history.values(), strict=True)]


def test_devices_are_found_or_named():
    auto = quick(rows(), device="auto", **SHORT)
    if not torch.cuda.is_available():
        assert bits(auto) == bits(quick(rows(), device="cpu", **SHORT))
        with pytest.raises(TrainingError, match=r"device = cuda:0 cannot be used here: .* Use 'cpu'"):
            quick(rows(), device="cuda:0", **SHORT)
    with pytest.raises(TrainingError, match="device = gpu cannot be used here"):
        quick(rows(), device="gpu", **SHORT)
