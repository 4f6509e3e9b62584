"""When training ends, and which weights are kept."""

import itertools

import pytest
import torch
from measures import z_of_mean
from runs import quick, rows
from test_training import Silent, squared_errors

from sbi_core.estimators import RatioEstimator, carl
from sbi_core.estimators.loop import Loop, Plan
from sbi_core.estimators.scaling import Scaler


def test_patience_ends_training_and_the_best_weights_are_kept():
    """50 training rows, a large network and a high rate: without stopping, the ratio is worse than saying nothing."""
    options = {"validation_fraction": 0.95, "max_epochs": 150, "batch_size": 16, "learning_rate": 1e-2}
    options |= {"simulator": None, "hidden": (256, 256)}
    stopped = quick(rows(1000), carl, patience=15, **options)
    endless = quick(rows(1000), carl, patience=150, **options)
    assert (stopped.ended, endless.ended) == ("patience", "budget")
    assert stopped.history["epoch"][-1] == stopped.best_epoch + 15 < 150 == endless.history["epoch"][-1]
    length = len(stopped.history["epoch"])
    assert stopped.history["validation"] == endless.history["validation"][:length], "the same run until then"
    looks = dict(zip(stopped.history["epoch"], stopped.history["validation"], strict=True))
    assert min(looks.values()) == looks[stopped.best_epoch]
    assert stopped.flags == endless.flags == ()
    gain = squared_errors(Silent()) - squared_errors(stopped.estimator)
    assert gain.mean() > 0 and z_of_mean(gain) > 4
    assert endless.best_epoch < 150 and endless.history["validation"][-1] > min(endless.history["validation"]) + 0.01


def test_a_long_training_is_looked_at_fifty_times_at_most():
    run = quick(rows()[:60], carl, max_epochs=460, validation_fraction=0.5, patience=460)
    assert run.history["epoch"] == [*range(10, 461, 10)]
    run = quick(rows()[:60], carl, max_epochs=55, validation_fraction=0.5, patience=55)
    assert run.history["epoch"] == [*range(2, 55, 2), 55], "and at its end"


def test_what_is_kept_is_an_average_of_the_weights():
    """One step: the average is the weight after it, as step s of t has the share (s/t)^8."""
    data, seen = rows()[:40], []

    def watching(estimator, batch):
        if torch.is_grad_enabled():
            seen.append(estimator.network[0].weight.detach().clone())
        return carl(estimator, batch)

    run = quick(data, watching, max_epochs=4, batch_size=100, patience=9, learning_rate=3e-3)
    shares = [1.0]
    for step in range(2, 5):
        rate = 1 - (1 - 1 / step) ** 9
        shares = [share * (1 - rate) for share in shares] + [rate]
    assert run.best_epoch == 4, "so that all four steps are in it"
    kept = run.estimator.network[0].weight
    expected = sum(share * weight for share, weight in zip(shares[:-1], seen[1:], strict=True))
    last = (kept - expected) / shares[-1]
    assert sum(shares) == pytest.approx(1) and shares[-1] > 0.9
    assert (last - seen[-1]).abs().max() <= 3e-3, "a step of Adam is at most its learning rate"
    assert (kept - seen[-1]).abs().max() > 0


def test_plain_numbers_are_scaled_once_and_the_loss_reads_them_as_they_are(monkeypatch):
    """The same bits as scaling in each step."""
    data = rows()[:200]
    scaled, raw = [], []
    prepared, forward = RatioEstimator.prepared, Scaler.forward

    def counting(scaler, values):
        scaled.append(values)
        return forward(scaler, values)

    def watching(estimator, batch):
        raw.append(batch.x)
        return carl(estimator, batch)

    monkeypatch.setattr(Scaler, "forward", counting)
    found = {}
    for name, ready in (("once", prepared), ("always", lambda model, batch: batch)):
        scaled.clear()
        monkeypatch.setattr(RatioEstimator, "prepared", ready)
        run = quick(data, watching, batch_size=10)
        found[name] = (len(scaled), run.history["validation"], run.estimator.state_dict())
    assert found["once"][1] == found["always"][1]
    assert all(torch.equal(value, found["always"][2][name]) for name, value in found["once"][2].items())
    passes, steps = 3, 3 * 18
    assert found["always"][0] - found["once"][0] >= steps - passes, "x once in a pass, not once in a step"
    assert {x.dtype for x in raw} == {torch.float64} and torch.isin(torch.cat(raw), data.x).all()


def test_matrices_decay_and_biases_do_not():
    """Where the gradient is zero, a step multiplies matrices by 1 - rate decay, as in AdamW: arXiv:1711.05101."""
    seen = []

    def watching(estimator, batch):
        if torch.is_grad_enabled():
            seen.append([part.detach().clone() for part in estimator.network[0].parameters()])
        return 0 * estimator.log_likelihood(batch.theta, batch.x).sum()

    quick(rows()[:40], watching, max_epochs=5, batch_size=100, learning_rate=0.1, weight_decay=0.5)
    plan = Plan(5, 1, 100, 1, 0.1, 0.5, 0.0, torch.device("cpu"))
    for step, ((matrix, bias), (after, bias_after)) in enumerate(itertools.pairwise(seen)):
        assert torch.allclose(after, matrix * (1 - 0.5 * plan.rate(step)), rtol=1e-6)
        assert torch.equal(bias, bias_after) and bias.any() and not torch.equal(matrix, after)
    assert len(seen) == 5


@pytest.mark.parametrize("before", [False, True])
def test_denormals_are_flushed_while_training_and_only_then(before) -> None:
    seen = []

    def flushing() -> bool:
        return not bool(torch.tensor(1e-40) * 1)

    def watching(estimator, batch):
        seen.append(flushing())
        if len(seen) == 5:
            raise KeyboardInterrupt
        return estimator.log_likelihood(batch.theta, batch.x).sum() * 0

    torch.set_flush_denormal(before)
    try:
        with pytest.raises(KeyboardInterrupt):
            quick(rows()[:40], watching, max_epochs=50, batch_size=100)
        assert flushing() == before and seen == [True] * 5
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize(("gain", "kept"), [(-0.5, False), (0.5, False), (1.5, True)])
def test_what_was_known_at_the_start_goes_for_more_than_luck(gain, kept) -> None:
    """Gains in standard errors of the held-out slices."""
    noise = torch.linspace(-1, 1, 20, dtype=torch.float64)
    gains = gain * noise.std() / 20**0.5 + noise
    head = RatioEstimator.from_data(rows())
    plan = Plan(3, 1, 100, 3, 0.1, 0.0, 1.0, torch.device("cpu"))
    loop = Loop(head, lambda _, k: 5.0 - loop.epoch * gains[k], plan, begun=True)
    loop.start = loop.lowest = loop._losses(range(20))
    loop.epoch = 1
    loop._look(0.0, range(20))
    assert (loop.best_epoch == 1) == kept
