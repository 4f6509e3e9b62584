"""Does the posterior predict what was observed?"""

import json
from dataclasses import replace

import pytest
import torch
from matplotlib.figure import Figure

from sbi_core import Events, FunctionSimulator, InputError, Parameter, infer, plots, simulate
from sbi_core.inference.checks.replicates import replicate
from sbi_core.results import Results
from sbi_core.seeding import seeded
from sbi_core.self_check import with_checks
from sbi_core.simulators import GaltonBoard

BOARD = GaltonBoard()
WORLD = FunctionSimulator(
    lambda theta, rng: theta + rng.standard_normal(theta.shape), [Parameter(f"mu_{k}", -9, 9) for k in range(3)]
)


def predicted(world, x, *, seed=1, draws=400):
    """Of the exact posterior at x (n, ...), under a flat prior."""
    with seeded(seed):
        if world is BOARD:
            theta = infer(world, world.prior, x, iid=True).sample(torch.Size([draws])).double()
        else:
            theta = x.mean(0) + torch.randn(draws, 3, dtype=torch.float64) / len(x) ** 0.5
    return replicate(world, theta, x, seed=seed)


@pytest.fixture(scope="module")
def observed():
    """Thirty rows at one theta."""
    theta = torch.tensor([0.5, -1.0, 0.2]).double()
    return simulate(WORLD, 30, seed=2, proposal=theta, progress=False).x.double()


def test_what_was_simulated_is_predicted(observed):
    for x, count in ((observed[:1], 3), (observed, 6)):
        found = predicted(WORLD, x)
        assert found.passed and found.verdict.startswith("passed: x_obs lies among 400 replicates, p = ")
        assert found.observed.shape == (count,) and found.bands.shape == (5, count) and len(found.names) == count
        assert bool((found.bands.diff(dim=0) >= 0).all()) and found.replicates == 400
    assert found.names[:4] == ("mean of column 0", "mean of column 1", "mean of column 2", "sd of column 0")
    assert not found.alike and predicted(WORLD, observed[:1]).alike


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        (lambda x: (x - x.mean(0)) * 2 + x.mean(0), "3 of 6 outside"),
        (lambda x: x.mean(0).expand(30, 3).clone(), "3 of 6 outside"),
        (lambda x: torch.cat([x[:29], x[29:] + 40]), ""),
    ],
)
def test_sets_unlike_any_are_told(observed, fault, named):
    found = predicted(WORLD, fault(observed))
    assert found.passed is False and found.verdict.startswith("NOT as predicted by 400 replicates, p = ")
    assert named in found.verdict and found.to_json()["passed"] is False


def test_what_no_column_shows_is_told():
    """x_2 is x_1 in every simulation, but not in what was observed."""

    def pair(theta, rng):
        x = theta + rng.standard_normal(theta.shape)
        return torch.tensor(x).repeat(1, 2) + 0.01 * torch.tensor(rng.standard_normal((len(x), 2)))

    world = FunctionSimulator(pair, [Parameter("mu", -2, 2)])
    theta = torch.zeros(600, 1).double()
    assert replicate(world, theta, torch.tensor([[0.5, 0.5]]), seed=1).passed
    found = replicate(world, theta, torch.tensor([[0.5, -0.5]]), seed=1)
    assert found.passed is False and "0 of 2 outside" in found.verdict


def test_false_alarms_are_few():
    """Of sets whose spread the posterior cannot follow p is uniform at best; of single rows it is far from 0."""
    with seeded(7):
        theta = WORLD.prior.sample(torch.Size([40])).double().repeat_interleave(12, 0)
    x = simulate(WORLD, 40 * 12, seed=7, proposal=theta, progress=False).x.double().reshape(40, 12, 3)
    sets = [predicted(WORLD, rows, draws=200, seed=k).p for k, rows in enumerate(x)]
    alone = [predicted(WORLD, rows[:1], draws=200, seed=k).p for k, rows in enumerate(x[:20])]
    assert sum(p < 0.05 for p in sets) <= 7, "5% of 40 are 2; more than 7 have a probability of 0.1%"
    assert sum(p < 0.05 for p in alone) <= 1
    wide = [predicted(WORLD, 2 * rows, draws=200, seed=k).p for k, rows in enumerate(x[:10])]
    assert sum(p < 0.05 for p in wide) > 8, "saboteur: twice as wide"


def test_labels_are_counted():
    x = simulate(BOARD, 200, seed=1, proposal=torch.tensor([-0.7]), progress=False).x.double()
    found = predicted(BOARD, x)
    assert found.passed and found.names[3] == "label 3" and found.alike
    assert found.observed.tolist() == torch.bincount(x.flatten().long(), minlength=32).tolist()
    other = x.clone()
    other[:60] = 15.0
    assert predicted(BOARD, other).passed is False, "saboteur: a third in the middle"


def test_rows_that_fail_are_left_out():
    def often(theta, rng):
        x = theta + rng.standard_normal(theta.shape)
        x[rng.random(len(x)) < 0.3] = float("nan")
        return x

    world, x = FunctionSimulator(often, [Parameter("mu", -2, 2)]), torch.zeros(1, 1)
    assert 250 < replicate(world, torch.zeros(400, 1).double(), x, seed=1).replicates < 310
    with pytest.raises(InputError, match=r"of 120 replicates are finite, expected at least 100"):
        replicate(world, torch.zeros(120, 1).double(), x, seed=1)


def test_the_same_seed_gives_the_same(observed):
    theta = torch.zeros(200, 3).double()
    found = [replicate(WORLD, theta, observed, seed=seed).to_json() for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]
    assert json.loads(json.dumps(found[0]))["p"] == found[0]["p"]


def test_picture(observed):
    single, whole = predicted(WORLD, observed[:1]), predicted(WORLD, observed)
    for found in (single, whole):
        with plots.style():
            axes = plots.predictive(found, axes=Figure().add_subplot())
        points = [line for line in axes.lines if line.get_marker() == "o"]
        assert sum(len(line.get_xdata()) for line in points) == len(found.names)
        assert plots.VERMILION not in [line.get_color() for line in points]
        off = replace(found, observed=found.bands[-1] + 1)
        colours = [line.get_color() for line in plots.predictive(off, axes=Figure().add_subplot()).lines]
        assert plots.VERMILION in colours, "saboteur: outside of all bands"
    assert axes.get_ylabel() == "from the median, in half 68% bands"


@pytest.mark.parametrize(
    ("change", "options", "why"),
    [
        ({"simulator": None}, {}, "there is no simulator"),
        ({}, {"replicates": 0}, "checks.replicates is 0"),
        ({}, {"time_limit": 1e-9}, "100 replicates would take about"),
        ({"x_obs": torch.tensor([[15.0]])}, {}, "of numbers, and of sets of labels"),
        ({"simulator": Events(BOARD, 3)}, {}, "of numbers, and of sets of labels"),
    ],
)
def test_a_run_says_why_nothing_was_replicated(change, options, why):
    x_obs = torch.tensor([[12.0], [15.0], [17.0]])
    posterior = infer(BOARD, BOARD.prior, x_obs, iid=True)
    results = Results("toy", BOARD.parameters, seed=1, simulator=BOARD, posterior=posterior, x_obs=x_obs)
    asked = {"iid": True, "pairs": 0, "time_limit": 100.0, "replicates": 200}
    found = with_checks(results, BOARD, BOARD.prior, **asked)
    assert found.posterior.verdicts["posterior predictive"].startswith("passed: x_obs lies among 200 replicates")
    assert found.summary()["posterior_predictive"]["replicates"] == 200
    none = with_checks(replace(results, **change), BOARD, BOARD.prior, **{**asked, **options})
    said = none.posterior.verdicts["posterior predictive"]
    assert said.startswith("unchecked: ") and why in said and none.summary()["posterior_predictive"] == "unchecked"


def test_slow_worlds_are_replicated_less(monkeypatch):
    x_obs = torch.tensor([[12.0], [15.0], [17.0]])
    posterior = infer(BOARD, BOARD.prior, x_obs, iid=True)
    results = Results("toy", BOARD.parameters, seed=1, simulator=BOARD, posterior=posterior, x_obs=x_obs)
    monkeypatch.setattr("sbi_core.self_check._seconds", lambda *given: 1.0)  # for a hundred
    for limit, count in ((2.5, 250), (30.0, 2000)):
        found = with_checks(results, BOARD, BOARD.prior, iid=True, pairs=0, time_limit=limit, replicates=2000)
        assert found.predicted.replicates == count
