"""Does the posterior predict what was observed?"""

import json
import math
import re
from dataclasses import replace

import pytest
import torch
from matplotlib.figure import Figure
from measures import z_of_mean

from sbi_core import Events, FunctionSimulator, InputError, Parameter, SimulatorError, infer, plots, simulate
from sbi_core.inference.checks.copies import copies
from sbi_core.inference.checks.replicates import replicate
from sbi_core.results import Results
from sbi_core.seeding import seeded
from sbi_core.self_check import _seconds, with_checks
from sbi_core.simulators import GaltonBoard

BOARD = GaltonBoard()
MU = Parameter("mu", -2, 2)
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


def failing(share, how="nan"):
    """x ~ N(mu, 1), of which a share fails, the more of them the higher mu is; by hand or with an error."""

    def often(theta, rng):
        x = theta + rng.standard_normal(theta.shape)
        lost = rng.random(theta.shape) < share * (1 + theta)
        if how == "error" and lost.any():
            raise ArithmeticError("no convergence")
        x[lost] = float("nan")
        return x

    return FunctionSimulator(often, [MU], vectorized=how != "error")


@pytest.mark.parametrize("n", [1, 200])
def test_rows_that_fail_are_drawn_again(n):
    """Of sets of 200 rows none would be left."""
    x = torch.randn(n, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = replicate(failing(0.3), torch.zeros(400, 1).double(), x, seed=1)
    assert found.replicates == 400 and found.passed and found.failed == pytest.approx(0.3, abs=0.1 if n == 1 else 0.01)
    assert re.search(r"0\.[23]\d* of their rows failed, and were drawn again$", found.verdict)
    assert replicate(WORLD, torch.zeros(200, 3).double(), torch.zeros(1, 3), seed=1).failed == 0


def test_thetas_that_fail_often_are_as_many_as_others():
    """Of rows at mu = 0 and 1 fail 15% and 30%: to leave them out would give x a mean of 0.7 / 1.55."""
    theta = torch.tensor([0.0, 1.0]).double().repeat(8000)[:, None]
    x, whole, lost = copies(failing(0.15), theta, 1, seed=1)
    assert bool(whole.all()) and lost == pytest.approx(0.225, abs=0.015) and x.shape == (16_000, 1, 1)
    assert z_of_mean(x[:, 0], 0.5) < 4 < z_of_mean(x[:, 0], 0.7 / 1.55)
    rows = copies(WORLD, torch.tensor([[0.0] * 3, [5.0] * 3]).double().repeat(50, 1), 4, seed=1)[0]
    assert rows.shape == (100, 4, 3) and bool((rows[::2] < 5).all() and (rows[1::2].mean((1, 2)) > 4).all())


def test_designs_stay_with_their_rows():
    """Whatever is drawn again is drawn at the design of its row."""

    def at(theta, design, rng):
        x = theta + design
        x[rng.random(len(x)) < 0.3] = float("nan")
        return x

    world = FunctionSimulator(at, [MU], designs=[Parameter("t", 0, 99)])
    design = torch.arange(90.0).double()[:, None]
    x, whole, _ = copies(world, torch.zeros(30, 1).double(), 3, seed=1, design=design)
    assert bool(whole.all()) and torch.equal(x.flatten().double(), design[:, 0])


def test_failures_are_allowed_as_in_the_campaign():
    world, theta, x = failing(0.1, "error"), torch.zeros(150, 1).double(), torch.zeros(1, 1)
    with pytest.raises(SimulatorError, match="no convergence"):
        replicate(world, theta, x, seed=1)
    found = replicate(world, theta, x, seed=1, failing=0.5)
    assert found.replicates == 150 and 0.03 < found.failed < 0.25


def test_too_few_replicates_are_told():
    for share, count in ((1.0, 0), (0.97, "[1-9][0-9]?")):
        said = (
            rf"of 120 replicates of 1 rows {count} could be simulated, expected at least 100: the simulator failed at"
        )
        with pytest.raises(InputError, match=said):
            replicate(failing(share), torch.zeros(120, 1).double(), torch.zeros(1, 1), seed=1)


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


def test_time_is_that_of_the_rows(monkeypatch):
    """What is done once counts once: a clock in place of a world that needs a minute first and a second a block."""
    clock = [0.0]

    def slow(world, n, **options):
        clock[0] += 60 + math.ceil(n / world.rows_per_seed)

    monkeypatch.setattr("sbi_core.self_check.simulate", slow)
    monkeypatch.setattr("sbi_core.self_check.time.perf_counter", lambda: clock[0])
    rows = 50 * WORLD.rows_per_seed
    assert _seconds(WORLD, WORLD.prior, rows, 1, 120.0) == pytest.approx(110)
    assert _seconds(WORLD, WORLD.prior, 1, 1, 120.0) == pytest.approx(61)
    assert clock[0] == 61 + 62 + 61, "one block twice, and another"
    assert _seconds(WORLD, WORLD.prior, rows, 1, 10.0) > 10 and clock[0] == 184 + 61, "no second call"


def test_worlds_that_cannot_be_timed_are_unchecked():
    """A world with designs wants one, which a run's observation does not have: said, not raised."""
    world = FunctionSimulator(lambda theta, design, rng: theta + design, [MU], designs=[Parameter("t", 0, 1)])
    posterior = infer(GaltonBoard(), BOARD.prior, torch.tensor([[12.0]]), iid=True)
    results = Results("toy", (MU,), seed=1, simulator=world, posterior=posterior, x_obs=torch.zeros(1, 1))
    found = with_checks(results, BOARD, BOARD.prior, iid=True, pairs=100, time_limit=9.0, replicates=200)
    for check in ("coverage", "posterior predictive"):
        assert found.posterior.verdicts[check].startswith("unchecked: "), check
