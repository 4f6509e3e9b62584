"""Scales where weights are shared, and what scaling says about x."""

import numpy as np
import pytest
import torch
from picture_toys import Spot, rows
from torch import nn

from sbi_core import InputError, Parameter, Simulations, UniformPrior, infer
from sbi_core.estimators import Ensemble, LikelihoodEstimator, PosteriorEstimator, RatioEstimator, carl, fit, scaling
from sbi_core.estimators.embeddings import as_embedding
from sbi_core.estimators.scaling import ENOUGH, Scaler

BOX = (Parameter("a", -2, 2), Parameter("b", -2, 2))
PRIOR = UniformPrior(BOX)


def noise(*shape, seed=1):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def table(x, **columns):
    theta = torch.from_numpy(np.random.default_rng(2).uniform(-2, 2, (len(x), 2)))
    return Simulations.from_arrays(theta, x, parameters=BOX, proposal=PRIOR, **columns)


def adapted(x, embedding=None, **columns):
    data = table(x, **columns)
    head = RatioEstimator.from_data(data, embedding=embedding)
    return head, head.adapt(data)


UNITS = {
    "cnn": ((3, 8, 8), (3, 1, 1), "cnn"),
    "one image": ((8, 8), (1, 1), "resnet"),
    "series": ((20, 3), (1, 3), "series"),
    "one series": ((20,), (1,), "series"),
    "events": ((6, 3), (1, 3), "sets"),
    "columns": ((4,), (4,), "mlp"),
    "own columns": ((4,), (4,), nn.Linear(4, 2)),
    "own rows": ((6, 3), (1, 3), nn.Sequential(nn.Flatten(), nn.Linear(18, 2))),
    "own image": ((8, 8), (1, 1), nn.Sequential(nn.Unflatten(1, (1, 8)), nn.Conv2d(1, 2, 8), nn.Flatten())),
    "own channels": ((3, 8, 8), (3, 1, 1), nn.Flatten()),
    "as said": ((3, 8, 8), (3, 8, 1), as_embedding(nn.Flatten(), (3, 8, 8), pooled=(-1,))),
}


@pytest.mark.parametrize(("shape", "cells", "embedding"), UNITS.values(), ids=UNITS)
def test_one_scale_for_all_that_shares_weights(shape, cells, embedding):
    unit = 10.0 ** torch.arange(torch.Size(cells).numel()).double().reshape(cells)
    x = noise(400, *shape) * unit + 1e3 * unit
    head, flags = adapted(x, embedding)
    scaler = head.x_scaler
    assert flags == [] and scaler.shift.shape == cells
    pooled = [0, *(axis + 1 for axis, side in enumerate(cells) if side == 1 < shape[axis])]
    low, middle, high = np.quantile(x.numpy(), [0.16, 0.5, 0.84], axis=pooled, keepdims=True)
    assert torch.allclose(scaler.shift, torch.from_numpy(middle[0])) and torch.allclose(
        scaler.scale, torch.from_numpy((high - low)[0] / 2)
    )
    by_number, _ = adapted(x)
    assert by_number.x_scaler.shift.shape == (torch.Size(shape).numel(),), "without an embedding: each by itself"


def test_a_pattern_stays_the_same_wherever_it_is():
    """Per pixel, a spot looks other at each place; per channel it does not."""
    x = rows(Spot(), 300).x.double()
    together, by_pixel = Scaler((16, 16), (0, 1)), Scaler((16, 16))
    for scaler in (together, by_pixel):
        scaler.adapt(x)
    image = x[0]
    assert torch.allclose(together(image.roll(3, 0)), together(image).roll(3, 0), atol=1e-6)
    assert not torch.allclose(by_pixel(image.roll(3, 0)), by_pixel(image).roll(3, 0), atol=1e-6), "saboteur"


@pytest.mark.parametrize("embedding", [None, "sets", "attention"])
def test_padding_has_no_part_in_the_scale(embedding):
    x, n = 1e9 + noise(500, 10, 2) * torch.tensor([1.0, 1e-3]), torch.arange(500) % 4
    padded = torch.where(torch.arange(10)[:, None] < n[:, None, None], x, 0.0)
    head, flags = adapted(padded, embedding, n_events=n)
    present = padded[torch.arange(10) < n[:, None]].numpy()
    low, middle, high = np.quantile(present, [0.16, 0.5, 0.84], axis=0)
    assert flags == [] and torch.allclose(head.x_scaler.shift[0], torch.from_numpy(middle), rtol=1e-15)
    assert torch.allclose(head.x_scaler.scale[0], torch.from_numpy((high - low) / 2))
    with_zeros, _ = adapted(padded, "sets")
    assert not torch.allclose(with_zeros.x_scaler.shift[0], torch.from_numpy(middle), rtol=1e-15), "saboteur"


def test_no_events_at_all():
    with pytest.raises(InputError, match="x is constant"):
        adapted(torch.zeros(30, 5, 2), "sets")
    n = torch.arange(30) % 3
    _, flags = adapted(torch.zeros(30, 5, 1), "sets", n_events=n)
    assert len(flags) == 1 and "x feature 0 is constant" in flags[0], "their number may still say something"


def test_a_large_offset_costs_nothing():
    x = noise(300, 3, 8, 8)
    one, other = adapted(x, "cnn")[0], adapted(x + 3e7, "cnn")[0]
    assert torch.allclose(one.seen(x), other.seen(x + 3e7), atol=1e-5)
    late = adapted((x + 3e7).float(), "cnn")[0]
    assert not torch.allclose(one.seen(x), late.seen((x + 3e7).float()), atol=1e-5), "saboteur: float32 before"


# Many numbers


def test_of_many_numbers_some_give_the_quantiles_and_all_say_what_is_constant():
    x = noise(ENOUGH // 1000 + 200, 1000, 2) * torch.tensor([1.0, 5.0]) + torch.tensor([0.0, 7.0])
    x[..., 1] = torch.where(torch.arange(x[..., 1].numel()).reshape(x.shape[:2]) == 12345, 8.0, 7.0)
    scaler = Scaler((1000, 2), (0,))
    scaler.adapt(x)
    error = 1.25 / ENOUGH**0.5  # of a median
    assert abs(float(scaler.shift[0, 0])) < 4 * error and abs(float(scaler.scale[0, 0]) - 0.9945) < 4 * 1.5 * error
    assert scaler.constant == [] and scaler(x).isfinite().all(), "one number of a million differs"
    few = Scaler((1000, 2), (0,))
    few.adapt(x[:20])
    assert not abs(float(few.shift[0, 0])) < 4 * error, "saboteur: fewer numbers"


@pytest.mark.parametrize(("shape", "pooled"), [((20_000_000, 1), ()), ((3000, 64, 64), (0, 1)), ((20_000, 500), ())])
def test_f67_much_data_is_not_copied_in_double_precision(monkeypatch, shape, pooled):
    x, held = torch.randn(shape, generator=torch.Generator().manual_seed(1)), []
    measure = scaling._location
    monkeypatch.setattr(scaling, "_location", lambda part: held.append(part.size) or measure(part))
    scaler = Scaler(shape[1:], pooled)
    scaler.adapt(x)
    assert max(held) <= 4e6 < x.numel()
    assert scaler.shift.abs().max() < 0.05 and (scaler.scale - 0.9945).abs().max() < 0.05
    if len(x) > 2**24:
        with pytest.raises(RuntimeError, match="too large"):
            torch.quantile(x[:, 0], 0.5)  # saboteur


# What is flagged


def test_f17_only_whole_channels_are_left_out():
    x = noise(100, 3, 8, 8)
    x[:, 1] = 7.0
    x[:, 0, 0] = 0.0
    head, flags = adapted(x, "cnn")
    assert flags == ["x channel 1 is constant in the training rows; it was left out"]
    assert (head.x_scaler(x)[:, 1] == 0).all()
    _, flags = adapted(x.flatten(1))
    assert len(flags) == 64 + 8, "each number by itself"


@pytest.mark.parametrize("head", [RatioEstimator, PosteriorEstimator, LikelihoodEstimator])
def test_f21_nothing_left_of_x(head):
    x = (1e9 + noise(200, 2)).float()
    with pytest.raises(InputError, match=r"x is constant in the training rows.*float64"):
        head.from_data(table(x)).adapt(table(x))
    assert head.from_data(table(x)).adapt(table(1e9 + noise(200, 2))) == [], "in double precision it is all there"


def constant_column(n=200):
    data = table(torch.cat([noise(n, 2), torch.full((n, 1), 7.0)], 1).float())
    with pytest.warns(UserWarning, match="x column 2 is constant"):
        return fit(RatioEstimator.from_data(data), carl, data, seed=1, max_epochs=1, progress=False).estimator


def test_f18_an_observation_where_x_was_constant():
    one, two = constant_column(), constant_column(150)
    for estimator in (one, Ensemble([one, two])):
        assert estimator.constants[2] == 7 and estimator.constants[:2].isnan().all()
        with pytest.raises(InputError, match="x_obs has 9 in column 2, which was constant at 7 in the training rows"):
            infer(estimator, PRIOR, [0.5, -0.5, 9.0])
        with pytest.raises(InputError, match="column 2"):
            infer(estimator, PRIOR, [[0.5, -0.5, 7.0], [0.5, -0.5, 9.0]], iid=True)
        for same in (7.0, 7 + 1e-7):
            assert infer(estimator, PRIOR, [0.5, -0.5, same]).mean.isfinite().all(), "up to single precision"


def test_f18_in_an_image_and_in_events():
    x = noise(40, 2, 8, 8)
    x[:, 1] = 7.0
    head, _ = adapted(x, "cnn")
    head.trained.fill_(True)
    infer(head, PRIOR, x[0])
    x[0, 1, 2, 3] = 9.0
    with pytest.raises(InputError, match=r"x_obs has 9 in place \(1, 2, 3\), which was constant at 7"):
        infer(head, PRIOR, x[0])
    n = torch.arange(40) % 4
    events = torch.where(
        torch.arange(6)[:, None] < n[:, None, None],
        torch.tensor([0.0, 7.0]) + noise(40, 6, 2) * torch.tensor([1.0, 0]),
        0.0,
    )
    head, _ = adapted(events, "sets", n_events=n)
    head.trained.fill_(True)
    infer(head, PRIOR, events[3, :3])
    infer(head, PRIOR, events[3], n_events=3)
    with pytest.raises(InputError, match=r"x_obs has 9 in place \(1, 1\)"):
        infer(head, PRIOR, torch.tensor([[0.1, 7.0], [0.2, 9.0]]))


def wild(n=2000, where=(17, 1203), value=1e12):
    rng = np.random.default_rng(1)
    theta = rng.uniform(-2, 2, (n, 2))
    x = theta + 0.3 * rng.standard_normal((n, 2))
    x[list(where)] = value
    return Simulations.from_arrays(theta, x, parameters=BOX, proposal=PRIOR)


def test_f22_wild_rows_are_named():
    def far(data, embedding=None):
        head = RatioEstimator.from_data(data, embedding=embedding)
        head.adapt(data)
        return head.far(data)

    assert far(wild()) == [17, 1203]
    assert far(wild(where=())) == []
    heavy = torch.distributions.Cauchy(0.0, 1.0).icdf(torch.rand(5000, 3).double().clamp(1e-4))
    assert far(table(heavy)) == [], "a heavy tail is no fault"
    images = noise(200, 8, 8)
    images[5, 3, 3] = 1e12
    assert far(table(images), "cnn") == [5]
    n = torch.arange(40) % 4 + 1
    events = torch.where(torch.arange(6)[:, None] < n[:, None, None], 1e9 + noise(40, 6, 2), 0.0)
    assert far(table(events, n_events=n), "sets") == [], "padding is no wild event"


@pytest.mark.filterwarnings("ignore::sbi_core.errors.SbiWarning")
def test_f22_wild_rows_are_named_whether_trained_on_or_held_out():
    data, held = wild(n=100, where=range(0, 100, 20)), []

    def watching(estimator, batch):
        held.append(float(batch.x.max()) if not torch.is_grad_enabled() else 0.0)
        return carl(estimator, batch)

    options = {"seed": 1, "max_epochs": 1, "validation_fraction": 0.5, "progress": False}
    run = fit(RatioEstimator.from_data(data, hidden=(8,)), watching, data, **options)
    assert max(held) == 1e12, "some are held out"
    assert any("far out in 5 rows (rows 0, 20, 40, 60, 80)" in flag for flag in run.flags)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sbi_core.errors.SbiWarning")
def test_f22_wild_rows_leave_the_posterior_in_band():
    data = wild()
    options = {"seed": 1, "max_epochs": 40, "learning_rate": 1e-2, "contrasts": 4, "progress": False}
    run = fit(RatioEstimator.from_data(data, hidden=(32, 32)), carl, data, **options)
    assert any("rows " in flag and ("17" in flag or "1203" in flag) for flag in run.flags)

    def in_band(x):
        posterior = infer(run.estimator, PRIOR, x)
        offset, ratio = (posterior.mean - torch.tensor([0.5, -0.5])) / 0.3, posterior.stddev / 0.3
        return bool(((offset.abs() < 0.5) & (ratio > 0.7) & (ratio < 1.4)).all())

    assert in_band([0.5, -0.5]) and not in_band([0.8, -0.2])
