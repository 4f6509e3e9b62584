"""Narrow posteriors and tight limits of one parameter, against closed forms."""

import math
from statistics import NormalDist

import pytest
import torch
from design_toys import Slope

from sbi_core import Events, InputError
from sbi_core.design import Hidden, expected_limit_width, expected_width, propose, run_loop
from sbi_core.events import RunLikelihood
from sbi_core.simulators import AsymmetryToy, LinearGaussian, MuonPairs

TILTED = LinearGaussian(matrix=[[1.0, 0.0], [1.0, 1.0]], latent_std=0.6, noise_std=0.8)
TOY = AsymmetryToy()


def width(simulator, runs=None, **options):
    return expected_width(runs or simulator, runs or simulator, simulator.prior, **{"n": 128, "inner": 1024, **options})


@pytest.mark.parametrize("events", [1, 5])
@pytest.mark.parametrize("of", [0, 1])
def test_width_of_a_linear_gaussian(events, of):
    runs = TILTED if events == 1 else Events(TILTED, events)
    exact = 1 - float(TILTED.posterior(torch.zeros(events, 2)).covariance_matrix[of, of].sqrt())
    found = [width(TILTED, runs, of=f"theta_{of + 1}", seed=seed) for seed in range(3)]
    values = torch.tensor([one.value for one in found])
    error = found[0].error
    assert abs(float(values.mean()) - exact) < error < 0.02 and float((values - exact).abs().max()) < 4 * error
    conditional = 1 - (1 + events * float(TILTED.fisher_information()[of, of])) ** -0.5
    assert abs(float(values.mean()) - conditional) > 4 * error, "saboteur: the other parameter held fixed"


def test_an_experiment_that_teaches_about_a_nuisance_alone_counts_for_nothing():
    world = LinearGaussian(matrix=[[0.0, 1.0]])
    found, other = (width(world, of=name) for name in ("theta_1", "theta_2"))
    assert abs(found.value) < found.error < 0.01 and other.value > 10 * other.error
    assert found.method == "expected width of theta_1" and found.simulations == 128


def test_width_chooses_a_design():
    world = Slope()
    choice = propose(world, world, world.prior, [0.5, 2.0], expected_width, of="theta", seed=1, n=128, inner=128)
    assert float(choice.design) == 2 and abs(choice.gain.value - (1 - 5**-0.5)) < 4 * choice.gain.error


def test_too_few_thetas_for_a_width_are_flagged():
    sharp = LinearGaussian(latent_std=1e-4, noise_std=0)
    assert "Raise inner" in width(sharp, of="theta_1").flags[0] and not width(TILTED, of="theta_1").flags


@pytest.mark.parametrize(("events", "level"), [(20, 0.683), (50, 0.95), (2, 0.683)])
def test_limits_of_a_linear_gaussian_are_normal_intervals(events, level):
    world = LinearGaussian(latent_std=0.6, noise_std=0.8)
    runs = world if events == 1 else Events(world, events)
    found = expected_limit_width(world, runs, world.prior, of="theta_1", level=level, thetas=3, events=200, seed=1)
    exact = 2 * NormalDist().inv_cdf((1 + level) / 2) * (1 - events**-0.5)
    assert found.value == pytest.approx(exact, abs=0.01)
    assert found.value != pytest.approx(exact * NormalDist().inv_cdf(0.5 + level / 4), abs=0.01), "saboteur"


def test_limits_profile_the_other_parameter():
    found = expected_limit_width(TILTED, Events(TILTED, 20), TILTED.prior, of="theta_2", thetas=2, events=200, seed=1)
    inverse = torch.linalg.inv(20 * TILTED.fisher_information())[1, 1].sqrt()
    assert found.value == pytest.approx(float(2 * 1.0006 * (1 - inverse)), abs=0.02)
    alone = (20 * TILTED.fisher_information()[1, 1]) ** -0.5
    assert found.value != pytest.approx(float(2 * 1.0006 * (1 - alone)), abs=0.02), "saboteur: theta_1 known"


def limit(runs, design, **options):
    given = {"of": "g", "thetas": 2, "events": 200, "seed": 1, **options}
    return expected_limit_width(TOY, runs, TOY.prior, design, **given).value


def test_limits_of_runs_set_by_the_design_or_a_luminosity():
    at = torch.tensor([50.0])
    by_design = limit(Events(TOY, n=TOY.rate_events), at)
    assert by_design == pytest.approx(limit(Events(TOY, 83), at)) and by_design < limit(Events(TOY, 200), at)
    pairs = MuonPairs()
    few, many = (
        expected_limit_width(
            pairs, Events(pairs, luminosity=size), pairs.prior, torch.tensor([91.0]), of="g_f", thetas=2, events=30
        ).value
        for size in (0.01, 1.0)
    )
    assert few < many


def test_limits_choose_a_design_in_a_loop():
    runs, given = Events(TOY, 20), {"of": "g", "thetas": 2, "events": 100, "seed": 1}
    found = run_loop(
        runs, Hidden(runs, [1.2]), candidates=[46.0, 50.0], utility=expected_limit_width, rounds=1, **given
    )
    assert float(found.experiments[0].design) == 50
    at, run = torch.tensor([50.0]).double(), RunLikelihood(runs, TOY)
    values = [expected_limit_width(one, runs, TOY.prior, at, **given).value for one in (TOY, runs, run)]
    assert values[0] == values[1] == values[2]


def test_arguments():
    with pytest.raises(InputError, match="there is no parameter 'h'"):
        limit(Events(TOY, 20), None, of="h")
    with pytest.raises(InputError, match="there is no parameter 'h'"):
        width(TOY, of="h")
    with pytest.raises(InputError, match="thetas = 1, expected at least 2"):
        limit(Events(TOY, 20), None, thetas=1)
    with pytest.raises(InputError, match=r"design is needed: in 'Events\(AsymmetryToy\)'"):
        limit(Events(TOY, n=TOY.rate_events), None)
    assert math.isfinite(limit(Events(TOY, 20), None))
