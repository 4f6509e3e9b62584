import json
import runpy
from pathlib import Path

import pytest
import torch

from sbi_core import Events, FunctionSimulator, InputError, Parameter, Simulations, UniformPrior, simulate
from sbi_core.estimators import RatioEstimator, carl, fit
from sbi_core.inference.checks.observation import check_observation
from sbi_core.simulators import SLCP, GaltonBoard, LinearGaussian

BENCHMARK = runpy.run_path(str(Path(__file__).parents[3] / "benchmarks" / "inference_observations.py"))
WORLDS, draw, wrong, flagger = (BENCHMARK[name] for name in ("WORLDS", "draw", "wrong", "flagger"))
DECAY = WORLDS["decay, sets"][0]
AMBIGUOUS = {"two moons, sets": {"sign", "uncorrelated"}}


@pytest.fixture(scope="module")
def decays():
    return simulate(DECAY, 10_000, seed=1, progress=False)


def shares(name, trials, seed=1):
    """The share of right observations that is flagged, and of each kind of wrong ones."""
    world, n, exact = WORLDS[name]
    flagged = flagger(world, n, exact, seed)
    right = draw(world, trials, n, seed + 1000)
    found = {"right": sum(map(flagged, right)) / trials}
    few = right[: max(20, trials // 50)]
    return found | {kind: sum(map(flagged, x)) / len(few) for kind, x in wrong(world, few, seed + 3000)}


def test_wrong_sets_are_flagged_and_right_ones_are_not():
    found = shares("decay, sets", 100)
    assert found.pop("right") <= 0.02 and len(found) >= 10
    assert sum(share >= 0.95 for share in found.values()) >= len(found) - 1, found


@pytest.mark.slow
@pytest.mark.parametrize("name", WORLDS)
def test_false_alarms_on_a_thousand(name):
    for seed in (1, 2, 3):
        found = shares(name, 1000, seed)
        assert found.pop("right") <= 0.01
        assert found["NaN"] == 1
        assert name.startswith("SLCP") or found["out of range"] > 0.5  # SLCP itself goes nearly as far
        if name.startswith("decay"):
            assert all(share >= 0.95 for share in found.values()), found


def test_where_thetas_are_too_far_apart_the_set_is_unchecked():
    world = SLCP()
    data, x = simulate(world, 10_000, seed=1, progress=False), draw(world, 1, 50, 3)[0]
    found = check_observation(x, data, iid=True, seed=1)
    assert [check.passed for check in found.checks] == [True, True, True, None]
    assert found.passed and "unchecked: set: over 90 stored rows x changes with theta" in found.verdict
    drawn = check_observation(x, data, iid=True, simulator=world, seed=1)
    assert len(drawn.checks) == 6 and drawn.passed and "unchecked" not in drawn.verdict
    repeated = check_observation(x[torch.arange(50) % 10], data, iid=True, simulator=world, seed=1)
    assert repeated.passed is False, "saboteur: ten rows five times"
    few = check_observation(x, data[:300], iid=True, seed=1)
    assert few.checks[-1].passed is None and "need at least 360 stored rows" in few.checks[-1].text


def test_nothing_is_called_checked_that_was_not(decays):
    x = draw(DECAY, 1, 9, 3)[0]
    found = check_observation(x, decays, iid=True, seed=1)
    assert found.checks[-1].passed is None and "9 rows are too few" in found.checks[-1].text
    nothing = check_observation(x[0], decays[:20], seed=1)
    assert nothing.passed is None and nothing.verdict.startswith("unchecked: columns: only 20 simulated rows")
    assert nothing.flags == ()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named(decays, bad):
    x = draw(DECAY, 1, 50, 3)[0]
    x[7, 2] = bad
    found = check_observation(x, decays, iid=True, seed=1)
    assert (
        not found.passed
        and f"{'NaN' if bad != bad else 'infinite'} in 1 of 200 places, first at [7, 2]" in found.flags[0]
    )


def test_what_is_said(decays):
    x = draw(DECAY, 1, 1, 3)[0, 0]
    right = check_observation(x, decays, seed=1)
    assert right.passed and right.verdict == "like what was simulated, by columns, distance, neighbours"
    x[3] = 100.0
    found = check_observation(x, decays, seed=1)
    assert "column 3 is 100, simulated were" in found.verdict and len(found.flags) >= 2
    low, high = found.checks[0].band
    assert -8 < low < -2 and 22 < high < 28 and found.checks[0].value == 100
    assert json.loads(json.dumps(found.to_json()))["checks"][0]["about"] == "column 3"


def test_the_same_seed_gives_the_same(decays):
    x = draw(DECAY, 1, 50, 3)[0]
    first, again, other = (check_observation(x, decays, iid=True, seed=seed) for seed in (1, 1, 2))
    assert first == again and first.checks != other.checks
    assert check_observation(x, decays, iid=True).seed != check_observation(x, decays, iid=True).seed


def test_several_sets_at_once(decays):
    x = draw(DECAY, 3, 50, 3)
    assert check_observation(x, decays, iid=True, batch=True, seed=1).passed
    x[1] = x[1][torch.arange(50) % 10]
    found = check_observation(x, decays, iid=True, batch=True, seed=1)
    assert not found.passed and "set 1: " in found.verdict


@pytest.mark.parametrize(
    ("x", "options", "words"),
    [
        ([1.0, 2.0, 3.0], {}, ["(4,)", "(3,)"]),
        ([[1.0, 2.0, 3.0, 4.0]] * 2, {}, ["iid=True"]),
        ([1.0, 2.0, 3.0, 4.0], {"iid": True}, ["(n, 4)", "(4,)"]),
    ],
)
def test_what_is_no_observation_is_refused(decays, x, options, words):
    with pytest.raises(InputError) as caught:
        check_observation(x, decays, **options)
    assert all(word in str(caught.value) for word in ["x_obs", *words])


def test_an_estimator_is_enough_for_single_rows():
    world = LinearGaussian(2)
    data = simulate(world, 500, seed=1, progress=False)
    with pytest.raises(InputError, match="simulations is missing"):
        check_observation([0.0, 0.0], estimator=RatioEstimator.from_data(data))
    trained = fit(
        RatioEstimator.from_data(data, hidden=[8]), carl, data, seed=1, max_epochs=1, progress=False
    ).estimator
    assert check_observation([0.5, 0.0], estimator=trained, seed=1).passed
    assert check_observation([0.5, 30.0], estimator=trained, seed=1).passed is False
    found = check_observation(torch.zeros(20, 2), estimator=trained, iid=True, seed=1)
    assert found.checks[-1].passed is None and "need simulations" in found.checks[-1].text
    x = world.sample(torch.zeros(20, 2).double(), None, torch.Generator().manual_seed(1))[0]
    options = {"estimator": trained, "simulator": world, "iid": True, "seed": 1}
    assert check_observation(x, **options).passed and check_observation(3 * x, **options).passed is False


def test_labels():
    board = GaltonBoard()
    data = simulate(board, 5000, seed=1, progress=False)
    x = board.sample(torch.full((100, 1), -0.5).double(), None, torch.Generator().manual_seed(1))[0]
    assert check_observation(x, data, iid=True, seed=1).passed
    everywhere = torch.arange(100)[:, None] % 31 + 0.0
    found = check_observation(everywhere, data, iid=True, seed=1)
    assert not found.passed and "of the set" in found.verdict
    names = [check.name for check in found.checks]
    assert names == ["labels", "distance of the set", "neighbours of the set"]
    few = Simulations.from_arrays(torch.rand(4000, 1), torch.arange(4000)[:, None] % 3 + 0.0, categories=5)
    new = check_observation([4.0], few, seed=1)
    assert new.passed is False and "[4] never came in 4000 simulated rows" in new.verdict
    assert check_observation([4.0], few[:100], seed=1).passed is None, "too few rows to say"


def test_runs_of_events():
    peak = FunctionSimulator(lambda theta, rng: rng.normal(theta, 1.0), [Parameter("mu", -2, 2)])
    peak.rate = lambda theta, design: torch.full((len(theta),), 20.0).double()
    data = simulate(Events(peak, luminosity=1.0), 1000, seed=1, progress=False)
    run = torch.randn(18, 1, generator=torch.Generator().manual_seed(1)) + 0.5
    assert check_observation(run, data, seed=1).passed
    wide = check_observation(3 * run, data, seed=1)
    assert not wide.passed and "sd of column 0" in wide.verdict
    assert check_observation(run[:1], data, seed=1).passed is False, "one event where 20 are expected"
    with pytest.raises(InputError, match="n_events is missing"):
        check_observation(torch.zeros(data.x.shape[1:]), data, seed=1)


def test_pictures_in_sets():
    def picture(theta, rng):
        return theta[:, :, None, None] * blob + rng.normal(size=(len(theta), 1, 36, 36))

    place = torch.arange(36).double()
    blob = torch.exp(-((place - 10) ** 2 + (place[:, None] - 18) ** 2) / 50).numpy()
    world = FunctionSimulator(picture, [Parameter("height", 0, 3)])
    data = simulate(world, 1500, seed=1, progress=False)
    x = simulate(world, 20, proposal=[1.5], seed=2, progress=False).x
    assert check_observation(x, data, iid=True, seed=1).passed
    assert check_observation(x.flip(3), data, iid=True, seed=1).passed is False


def test_designs():
    def reading(theta, design, rng):
        return theta * design + rng.normal(size=theta.shape)

    lamp = FunctionSimulator(reading, [Parameter("theta", -2, 2)], designs=[Parameter("distance", 1, 3)])
    data = simulate(lamp, 4000, design=UniformPrior(lamp.designs), seed=1, progress=False)
    x = 2.0 + torch.randn(30, 1, generator=torch.Generator().manual_seed(1))
    for options in ({}, {"simulator": lamp}):
        assert check_observation(x, data, design=[2.0], iid=True, seed=1, **options).passed
        assert check_observation(2 + 3 * (x - 2), data, design=[2.0], iid=True, seed=1, **options).passed is False
    own = check_observation(x, data, design=torch.full((30, 1), 2.0), iid=True, seed=1)
    assert own.checks[-1].passed is None and "designs of their own" in own.checks[-1].text
