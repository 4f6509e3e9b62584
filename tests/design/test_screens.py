"""Quick looks at designs: Fisher information of scores, and a bound for black boxes."""

import math

import pytest
import torch
from design_toys import Slope
from measures import z_of_mean

from sbi_core import Events, FunctionSimulator, InputError, MissingGold, Parameter, simulate
from sbi_core.design import barber_agakov, fisher_screen
from sbi_core.estimators import PosteriorEstimator, fit, npe
from sbi_core.simulators import AsymmetryToy, GaltonBoard, LinearGaussian

TILTED = LinearGaussian(matrix=[[1.0, 0.0], [1.0, 1.0]])
TOY = AsymmetryToy()


def screens(simulator, runs=None, seeds=10, **options):
    given = {"n": 8, "each": 64, **options}
    return [fisher_screen(runs or simulator, simulator.prior, seed=s, **given) for s in range(seeds)]


def latent_gain(world, n=1):
    information = n * world.fisher_information(latent=True)
    return 0.5 * float(torch.logdet(torch.eye(len(information)) + information))


@pytest.mark.parametrize("events", [1, 5])
def test_exact_for_a_linear_gaussian(events):
    runs = TILTED if events == 1 else Events(TILTED, events)
    scores = screens(TILTED, runs, estimator=TILTED)
    latents = screens(TILTED, runs)
    exact = float(TILTED.information_gain(events))
    assert z_of_mean([one.value for one in scores], exact) < 4
    assert z_of_mean([one.value for one in latents], latent_gain(TILTED, events)) < 4
    assert z_of_mean([one.value for one in latents], exact) > 4, "saboteur: latents know more"
    spread = float(torch.tensor([one.value for one in scores]).std())
    assert 0.5 * spread < scores[0].error < 3 * spread
    assert scores[0].direction == "none" and "no bound" in scores[0].flags[0] and scores[0].simulations == 8 * 64


def test_latents_have_no_less_information_than_x():
    board = GaltonBoard()
    x, z = (screens(board, seeds=2, estimator=e) for e in (board, None))
    assert all(one.value < other.value for one, other in zip(x, z, strict=True))
    same = [screens(TOY, seeds=1, estimator=e)[0].value for e in (TOY, None)]
    assert same[0] == pytest.approx(same[1], rel=1e-6), "where z says nothing, and x all"


def test_designs_are_ranked():
    runs = Events(TOY, 20)
    at = [
        fisher_screen(runs, TOY.prior, torch.tensor([phi]), estimator=TOY, seed=1, n=32, each=32).value
        for phi in (45.0, 48.0, 50.0)
    ]
    assert at[0] < 1e-9 and at[1] < at[2] and at[2] == pytest.approx(0.176, rel=0.15), "nearly normal posteriors"


def test_what_the_screen_refuses():
    with pytest.raises(InputError, match="n = 64, each = 9: expected at least 2 and 10"):
        fisher_screen(TOY, TOY.prior, each=9)
    with pytest.raises(MissingGold, match="'Slope' has no log_joint"):
        fisher_screen(Slope(), Slope().prior, torch.tensor([1.0]))

    class Nowhere(AsymmetryToy):
        def log_joint(self, theta, x, z, design):
            return super().log_joint(theta, x, z, design) * torch.nan

    with pytest.raises(InputError, match="a score is not finite"):
        fisher_screen(Nowhere(), TOY.prior)


class Answer:
    """The exact posterior of Slope as a density of theta, or one that is too narrow."""

    def __init__(self, share=1.0):
        self.share = share

    def log_posterior(self, theta, x, design=None, *, n_events=None):
        precision = 1 + design**2
        sd = self.share * precision**-0.5
        return torch.distributions.Normal(design * x / precision, sd).log_prob(theta)[..., 0]


def test_barber_agakov_is_a_lower_bound_that_the_posterior_attains():
    world, at = Slope(), torch.tensor([1.5]).double()
    exact = math.log1p(1.5**2) / 2
    right, wrong = (
        [barber_agakov(Answer(share), world, world.prior, at, n=256, seed=s) for s in range(20)] for share in (1, 0.7)
    )
    assert z_of_mean([one.value for one in right], exact) < 4
    assert z_of_mean([one.value for one in wrong], exact) > 4, "saboteur"
    loss = -math.log(0.7) + (1 - 0.7**-2) / 2
    assert z_of_mean([one.value for one in wrong], exact + loss) < 4
    assert right[0].direction == "lower" and right[0].simulations == 256
    wide = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(1).double(), 0.5), 1)
    narrow = [barber_agakov(Answer(), world, wide, at, n=256, seed=s).value for s in range(20)]
    assert max(narrow) < math.log1p(1.5**2 / 4) / 2, "trained on another belief: still a bound, and loose"


def test_what_barber_agakov_refuses():
    world, at = Slope(), torch.tensor([1.0]).double()
    with pytest.raises(InputError, match=r"needs a density of theta, and Slope is none. Train a PosteriorEstimator"):
        barber_agakov(world, world, world.prior, at)

    class Drawn(torch.distributions.Normal):
        has_density = False

    with pytest.raises(InputError, match="needs a belief with a density; these are draws"):
        barber_agakov(Answer(), world, Drawn(0.0, 1.0), at)

    class Zero(Answer):
        def log_posterior(self, theta, x, design=None, *, n_events=None):
            return torch.where(theta[..., 0] > 0, 0.0, -torch.inf)

    with pytest.raises(InputError, match="of 64 terms are not finite: q is zero"):
        barber_agakov(Zero(), world, world.prior, at, n=64)


def black_box(events):
    def shift(theta, rng):
        return theta[:, None] + rng.standard_normal((len(theta), events, 1))

    return FunctionSimulator(shift, [Parameter("mu", -3, 3)], prior=Slope().prior)


@pytest.mark.slow
def test_a_posterior_flow_of_a_black_box():
    world = black_box(2)
    data = simulate(world, 4000, seed=1, progress=False)
    flow = fit(PosteriorEstimator.from_data(data), npe, data, seed=1, progress=False).estimator
    found = [barber_agakov(flow, world, world.prior, n=1024, seed=s) for s in range(8)]
    exact = math.log(3) / 2
    mean = sum(one.value for one in found) / 8
    assert exact - 0.05 < mean < exact + 4 * found[0].error / 8**0.5


@pytest.mark.slow
def test_a_posterior_flow_of_runs():
    world = LinearGaussian(latent_std=0.6, noise_std=0.8)
    runs = Events(world, 3)
    data = simulate(runs, 4000, seed=1, progress=False)
    flow = fit(PosteriorEstimator.from_data(data), npe, data, seed=1, progress=False, max_epochs=30).estimator
    found = [barber_agakov(flow, runs, world.prior, n=1024, seed=s) for s in range(8)]
    exact, mean = float(world.information_gain(3)), sum(one.value for one in found) / 8
    assert exact - 0.05 < mean < exact + 4 * found[0].error / 8**0.5
