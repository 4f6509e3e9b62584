"""Heads that read runs of events: zero-padded x (N, n_max, ...) with a column n_events."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from embedding_toys import Careless
from picture_toys import Hits, rows
from runs import BOX, bits
from torch import nn

from sbi_core import Events, InputError, Simulations, Store, infer, simulate
from sbi_core.cli import main
from sbi_core.estimators import (
    Ensemble,
    LikelihoodEstimator,
    PosteriorEstimator,
    RatioEstimator,
    alice,
    alices,
    carl,
    fit,
    load_estimator,
    nle,
    npe,
    nre,
)
from sbi_core.observation import check_event, pad_events

RUNS, FULL = Events(Hits(), luminosity=3.0), Events(Hits(), 4)
AT = torch.tensor([0.3]).double()
SETS = {"name": "sets", "width": 8, "features": 4}


def learned(embedding=None, world=RUNS, head=RatioEstimator, loss=alice, seed=1, **options):
    data = rows(world, 100)
    start = head.from_data(data, embedding=embedding, **options)
    return fit(start, loss, data, simulator=world, seed=seed, max_epochs=1, gold_check=False, progress=False).estimator


def call(estimator, theta, x, n_events=None):
    with torch.no_grad():
        return estimator.log_likelihood(theta, x, n_events=n_events)


FLOW = {"transforms": 1, "flow_hidden": 8}
HEADS = {
    "plain": learned,
    "sets": lambda: learned(SETS),
    "attention": lambda: learned({"name": "attention", "width": 8, "heads": 2, "features": 4}),
    "blind": lambda: learned(nn.Sequential(nn.Flatten(), nn.LazyLinear(3))),
    "posterior": lambda: learned(SETS, head=PosteriorEstimator, loss=npe, **FLOW),
    "ensemble": lambda: Ensemble([learned(SETS), learned(SETS, seed=2)]),
}
HEADS = {name: cache(make) for name, make in HEADS.items()}
by_head = pytest.mark.parametrize("make", HEADS.values(), ids=HEADS)


@pytest.mark.parametrize("stored", [False, True])
def test_simulate_fills_the_column(tmp_path, stored):
    data = simulate(RUNS, 50, seed=1, progress=False, store=tmp_path / "runs.zarr" if stored else None)
    count = data[:].n_events
    assert isinstance(data, Store) == stored and count.dtype == torch.int64
    assert torch.equal(count, (data[:].x != 0).any(-1).sum(1)) and len(count.unique()) > 3
    head = RatioEstimator.from_data(data)
    assert head.counted and head.features == 2 * RUNS.n_max + 1 and not RatioEstimator.from_data(rows(RUNS, 5)).trained


@by_head
def test_padding_is_not_read_and_the_number_is(make):
    estimator, data = make(), rows(RUNS, 30)
    assert estimator.needs_n_events
    value = call(estimator, AT, data.x, data.n_events)
    junk = torch.where(torch.arange(RUNS.n_max)[:, None] < data.n_events[:, None, None], data.x, 77.0)
    assert torch.equal(call(estimator, AT, junk, data.n_events), value)
    fewer = (data.n_events - 1).clamp(min=0)
    assert (call(estimator, AT, data.x, fewer) != value)[data.n_events > 0].all()
    full = torch.full_like(data.n_events, RUNS.n_max)
    assert not torch.equal(call(estimator, AT, junk, full), call(estimator, AT, data.x, full)), "saboteur"


@by_head
@pytest.mark.parametrize("leading", [(), (6,), (2, 3), (2, 1, 3)])
def test_leading_axes(make, leading):
    estimator, data = make(), rows(RUNS, 12)[: torch.Size(leading).numel()]
    x, n = data.x.reshape(*leading, *data.x.shape[1:]), data.n_events.reshape(leading)
    got = call(estimator, AT, x, n)
    each = [call(estimator, AT, data.x[k], data.n_events[k]) for k in range(len(data))]
    assert got.shape == leading and torch.allclose(
        got.flatten().double(), torch.stack(each).flatten().double(), atol=1e-4
    )
    same = call(estimator, AT, x, torch.tensor(3))
    assert torch.allclose(same, call(estimator, AT, x, torch.full(leading, 3)), atol=1e-5)


def test_a_head_without_embedding_sees_the_logarithm_of_the_number():
    estimator, data = learned(), rows(RUNS, 30)
    seen = estimator.seen(data.x, data.n_events)
    assert torch.allclose(seen[:, -1].double(), torch.log((1 + data.n_events.double()) / (1 + RUNS.n_max)), atol=1e-6)
    present = torch.arange(RUNS.n_max) < data.n_events[:, None]
    assert (seen[:, :-1].unflatten(1, (-1, 2))[~present] == 0).all()
    assert "sets" in learned(SETS).describe()["embedding"]["name"] and learned(SETS).features == 4


@pytest.mark.parametrize("loss", [carl, nre, alices])
def test_every_loss_passes_the_number_on(loss):
    assert call(learned(SETS, loss=loss), AT, rows(RUNS, 3).x, rows(RUNS, 3).n_events).isfinite().all()


@by_head
def test_an_observation_is_padded_and_counted(make):
    estimator, data = make(), rows(RUNS, 3)
    n, x = int(data.n_events[0]), data.x[0]
    assert 0 < n < RUNS.n_max
    one, other = infer(estimator, RUNS.prior, x[:n]), infer(estimator, RUNS.prior, x, n_events=n)
    theta = torch.linspace(-0.9, 0.9, 7).double()[:, None]
    assert torch.equal(one.log_prob(theta), other.log_prob(theta))
    assert not torch.equal(one.log_prob(theta), infer(estimator, RUNS.prior, x, n_events=n - 1).log_prob(theta))
    together = infer(estimator, RUNS.prior, data.x, n_events=data.n_events, batch=True)
    assert torch.allclose(together.mean[0], one.mean, atol=1e-4)
    twice = infer(estimator, RUNS.prior, data.x, n_events=data.n_events, iid=True)
    by_hand = sum(call(estimator, theta, data.x[k], data.n_events[k]).double() for k in range(3))
    gap = twice.log_prob(theta) - by_hand
    assert (gap - gap[3]).abs().max() < 0.3, "up to the cells of the grid"
    both = infer(
        estimator,
        RUNS.prior,
        data.x[None].expand(2, -1, -1, -1),
        n_events=data.n_events.expand(2, -1),
        iid=True,
        batch=True,
    )
    assert torch.allclose(both.mean[1], twice.mean, atol=1e-4)


def test_no_events_are_an_observation():
    assert infer(RUNS, RUNS.prior, torch.zeros(0, 2)).mean < infer(RUNS, RUNS.prior, torch.zeros(6, 2)).mean


def test_the_exact_likelihood_is_read_the_same_way():
    data = rows(RUNS, 40)
    n = int(data.n_events[0])
    one, other = infer(RUNS, RUNS.prior, data.x[0, :n]), infer(RUNS, RUNS.prior, data.x[0], n_events=n)
    theta = torch.linspace(-0.9, 0.9, 7).double()[:, None]
    assert torch.equal(one.log_prob(theta), other.log_prob(theta))
    exact = RUNS.log_likelihood(theta, data.x[0], n_events=torch.tensor(n))
    gap = one.log_prob(theta) - exact
    assert (gap - gap[3]).abs().max() < 0.1
    gap = one.log_prob(theta) - RUNS.log_likelihood(theta, data.x[0], n_events=torch.tensor(n + 3))
    assert not (gap - gap[3]).abs().max() < 0.1, "saboteur: other numbers"
    look = RUNS.observe(data.x, n_events=data.n_events)
    assert torch.equal(look(data.theta), RUNS.log_likelihood(data.theta, data.x, n_events=data.n_events))
    assert infer(FULL, FULL.prior, rows(FULL, 1).x[0]).mean.isfinite().all(), "a fixed number needs no telling"


def test_posterior_head_takes_the_number_everywhere():
    estimator, data = HEADS["posterior"](), rows(RUNS, 5)
    assert estimator.sample(data.x, 3, n_events=data.n_events).shape == (5, 3, 1)
    value = estimator.log_posterior(data.theta, data.x, n_events=data.n_events)
    assert not torch.equal(value, estimator.log_posterior(data.theta, data.x, n_events=data.n_events + 1))
    for method in (lambda: estimator.sample(data.x, 3), lambda: estimator.log_posterior(data.theta, data.x)):
        with pytest.raises(InputError, match="n_events is missing"):
            method()


def test_runs_that_are_always_full_need_no_number(tmp_path):
    for embedding in (None, SETS):
        estimator, data = learned(embedding, FULL), rows(FULL, 5)
        assert estimator.counted and not estimator.needs_n_events
        value = call(estimator, AT, data.x)
        assert torch.equal(call(estimator, AT, data.x, data.n_events), value)
        assert infer(estimator, FULL.prior, data.x[0]).mean.isfinite().all()
        with pytest.raises(InputError, match=r"expects 4 events in each x; got runs of 3 to 3 events.*full runs only"):
            call(estimator, AT, data.x, data.n_events - 1)
        assert not load_estimator(estimator.save(tmp_path)).needs_n_events


@by_head
def test_it_returns_from_its_folder(tmp_path, make):
    estimator, data = make(), rows(RUNS, 5)
    own = {"embedding": nn.Sequential(nn.Flatten(), nn.LazyLinear(3))} if make is HEADS["blind"] else {}
    back = load_estimator(estimator.save(tmp_path), **own)
    assert back.needs_n_events and bits(back) == bits(estimator)
    assert torch.equal(call(back, AT, data.x, data.n_events), call(estimator, AT, data.x, data.n_events))


def test_own_module_may_read_the_number():
    class Three(Hits):
        def sample(self, theta, design, generator):
            x, _ = super().sample(theta, design, generator)
            return torch.cat([x, x[:, :1]], 1), None

    estimator = learned(Careless(), Events(Three(), luminosity=3.0))
    assert estimator.needs_n_events and not estimator.joins_count and estimator.x_scaler.pooled == (0,)


# What goes wrong


@pytest.mark.parametrize(
    ("n_events", "words"),
    [
        (None, r"n_events is missing: RatioEstimator reads runs of up to \d+ events, .*Give n_events"),
        (torch.tensor([1.5, 2.0, 3.0]), r"n_events holds \[1.5, 2.0, 3.0\], expected whole numbers"),
        (torch.tensor([1, 2, 999]), "n_events holds .*0 to"),
        (torch.tensor([-1, 2, 3]), "n_events holds"),
        (torch.tensor([1, 2]), r"n_events has shape \(2,\), expected \(3,\), one for each x"),
    ],
)
def test_the_number_is_checked(n_events, words):
    data = rows(RUNS, 3)
    for method in (learned().log_likelihood, lambda theta, x, n_events: learned().observe(x, n_events=n_events)):
        with pytest.raises(InputError, match=words):
            method(data.theta, data.x, n_events=n_events)


@pytest.mark.parametrize(
    ("x", "options", "words"),
    [
        (torch.zeros(RUNS.n_max, 2), {}, "n_events is missing: x_obs has room for"),
        (torch.zeros(RUNS.n_max + 1, 2), {}, rf"n at most {RUNS.n_max} events"),
        (torch.zeros(3, 5), {}, r"x_obs has shape \(3, 5\), expected \(n, 2\)"),
        (torch.zeros(3, 2), {"n_events": 4}, "n_events = 4.*whole numbers from 0 to 3"),
        (torch.zeros(3, 2), {"n_events": 2.5}, "n_events = 2.5.*whole numbers from 0 to 3"),
        (torch.zeros(3, 2), {"n_events": [1, 2]}, r"n_events = \[1.0, 2.0\].*one for each run"),
        (torch.full((3, 2), torch.nan), {}, "x_obs is NaN"),
    ],
)
@pytest.mark.parametrize("source", [learned, lambda: RUNS], ids=["learned", "exact"])
def test_an_observation_that_does_not_fit(source, x, options, words):
    if source is not learned and x.shape == (3, 5):
        pytest.skip("the exact likelihood knows no width")
    with pytest.raises(InputError, match=words):
        infer(source(), RUNS.prior, x, **options)


def test_who_reads_no_number_says_so():
    for source in (FULL, learned(world=FULL)):
        with pytest.raises(InputError, match=r"n_events is given, and .* reads x without it"):
            infer(source, FULL.prior, rows(FULL, 1).x[0], n_events=4)


def test_rows_and_head_must_agree():
    data, options = rows(RUNS, 100), {"seed": 1, "max_epochs": 1, "progress": False}
    with pytest.raises(InputError, match=r"LikelihoodEstimator expects .*single events, and infer\(..., iid=True\)"):
        fit(LikelihoodEstimator.from_data(data, **FLOW), nle, data, **options)
    with pytest.raises(InputError, match=r"RatioEstimator expects .*from_data\(data\), or counted=True"):
        fit(RatioEstimator(data.info.parameters, data.x.shape[1:]), carl, data, **options)
    with pytest.raises(InputError, match="n_events is missing"):
        fit(RatioEstimator.from_data(data), carl, replace(data, n_events=None), **options)
    full = rows(FULL, 100)
    assert fit(LikelihoodEstimator.from_data(full, **FLOW), nle, full, **options).estimator.trained, "of one width"


def test_runs_of_numbers_need_no_axis_of_features():
    n = torch.randint(1, 5, (60,), generator=torch.Generator().manual_seed(1))
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(2)) * (torch.arange(4) < n[:, None])
    data = Simulations.from_arrays(torch.rand(60, 2).double(), x, parameters=BOX, n_events=n)
    estimator = fit(RatioEstimator.from_data(data), carl, data, seed=1, max_epochs=1, progress=False).estimator
    assert estimator.x_scaler.shift.shape == (1,)
    value = call(estimator, torch.zeros(2), x, n)
    assert value.shape == (60,) and torch.equal(call(estimator, torch.zeros(2), x + 9.0 * (x == 0), n), value)


def test_the_command_line_reads_runs(tmp_path, capsys):
    data = rows(RUNS, 60)
    data.to_npz(tmp_path / "rows.npz")
    np.save(tmp_path / "seen.npy", data.x[0, :3].numpy())
    asked = [
        f"run_dir={tmp_path / 'run'}",
        f"data={tmp_path / 'rows.npz'}",
        f"x_obs={tmp_path / 'seen.npy'}",
        "loss=carl",
    ]
    asked += ["estimator.embedding={name: sets, width: 8}", "training.max_epochs=1", "simulator=null", "seed=1"]
    assert main([*asked, "progress=false"]) == 0, capsys.readouterr().err
    head = load_estimator(tmp_path / "run" / "model")
    assert head.needs_n_events and head.embedding.described["width"] == 8
    with np.load(tmp_path / "run" / "posterior.npz") as found:
        assert found["x_obs"].shape == (3, 2) and np.isfinite(found["samples"]).all()


def test_read_from_a_file_a_run_may_have_any_number_of_events():
    event = (9, 2)
    for shape, iid in (((5, 2), False), ((9, 2), False), ((3, 5, 2), True)):
        assert check_event(torch.ones(shape), event, iid=iid, runs=True).shape == shape
    with pytest.raises(InputError, match="x_obs has shape"):
        check_event(torch.ones(5, 2), event, iid=False)
    padded, count = pad_events(torch.ones(3, 5, 2), event, leading=1)
    assert padded.shape == (3, 9, 2) and count.tolist() == [5, 5, 5] and padded.sum() == 30
