from pathlib import Path

import numpy as np
import pytest
import torch
from measures import z_of_mean
from torch.distributions import Cauchy, Independent, LogNormal, Normal, StudentT

import sbi_core.simulators
from sbi_core import InputError, Parameter, Posterior, Simulator, UniformPrior, infer, simulate
from sbi_core.estimators import RatioEstimator, carl, fit
from sbi_core.parameters import names
from sbi_core.seeding import seeded
from sbi_core.simulators import GaltonBoard, LinearGaussian

PLANE = LinearGaussian(matrix=[[1.0, 0.0], [1.0, 3.0], [0.0, -1.0]])
WORLDS = {1: LinearGaussian(1), 2: PLANE}


def observed(world, n=None, seed=1):
    """One observation, or n of them at one theta."""
    theta = torch.full((n or 1, len(world.parameters)), 0.4).double()
    x = world.sample(theta, None, torch.Generator().manual_seed(seed))[0]
    return x if n else x[0]


def cells(posterior):
    return torch.stack([centre.diff(dim=-1)[..., 0] for centre in posterior.grid()[0]], -1)


def close(posterior, exact):
    """Mean and variance up to what cells of that size do to a smooth density (second order in their width)."""
    cell, sd = cells(posterior), exact.stddev
    mean = (posterior.mean - exact.mean).abs() < cell**2 / sd
    return bool((mean & ((posterior.variance - exact.variance).abs() < cell**2 / 6)).all())


@pytest.mark.parametrize("n", [None, 1, 50])
@pytest.mark.parametrize("dims", WORLDS)
def test_the_posterior_is_the_exact_one(dims, n):
    world = WORLDS[dims]
    x = observed(world, n)
    posterior, exact = infer(world, world.prior, x, iid=n is not None), world.posterior(x)
    assert isinstance(posterior, Posterior) and posterior.batch_shape == () and posterior.event_shape == (dims,)
    assert close(posterior, exact)
    wide = LinearGaussian(matrix=world.matrix, prior_std=1.5)
    assert not close(posterior, wide.posterior(x)), "saboteur: another prior"
    low, high = posterior.credible_interval(0.683)
    quantile = Normal(exact.mean, exact.stddev).icdf(torch.tensor([[0.1585], [0.8415]]))
    assert (torch.stack([low, high]) - quantile).abs().max() < (cells(posterior) ** 2 / exact.stddev).max()
    with seeded(1):
        theta = exact.sample((50,))
    assert torch.allclose(
        posterior.log_prob(theta), exact.log_prob(theta), atol=4 * float((cells(posterior) / exact.stddev).sum())
    )
    assert posterior.flags == () and posterior.verdicts["normalisation"] == "exact on the grid"
    assert posterior.verdicts["coverage"] == posterior.verdicts["x_obs inside the simulated range"] == "unchecked"


def test_three_parameters_on_a_grid():
    world = LinearGaussian(matrix=[[1.0, 0.0, 0.5], [1.0, 3.0, 0.0], [0.0, -1.0, 1.0]])
    x = observed(world)
    posterior = infer(world, world.prior, x, method="grid")
    assert close(posterior, world.posterior(x)) and not posterior.flags
    assert not close(posterior, LinearGaussian(matrix=world.matrix, prior_std=1.5).posterior(x)), "saboteur"
    with seeded(1):
        theta = posterior.sample((4000,))
    assert z_of_mean(theta, posterior.mean) < 4
    assert z_of_mean((theta - posterior.mean) ** 2, posterior.variance) < 4


def test_iid_is_not_one_observation():
    x = observed(PLANE, 3)
    assert not close(infer(PLANE, PLANE.prior, x, iid=True), PLANE.posterior(x[:1]))
    assert close(infer(PLANE, PLANE.prior, x[:1], iid=True), PLANE.posterior(x[:1]))


@pytest.mark.parametrize("dims", WORLDS)
@pytest.mark.parametrize("n", [None, 4])
def test_a_batch_is_one_problem_a_row(dims, n):
    world = WORLDS[dims]
    x = torch.stack([observed(world, n, seed) for seed in range(3)])
    together = infer(world, world.prior, x, batch=True, iid=n is not None)
    assert together.batch_shape == (3,) and together.mean.shape == (3, dims)
    for k in range(3):
        alone = infer(world, world.prior, x[k], iid=n is not None)
        assert torch.allclose(together.mean[k], alone.mean, rtol=1e-9) and close(alone, world.posterior(x[k]))
        assert torch.allclose(together.stddev[k], alone.stddev, rtol=1e-9)
        assert torch.allclose(together.grid()[1][k], alone.grid()[1], atol=1e-9)


@pytest.mark.parametrize("dims", WORLDS)
def test_a_posterior_is_the_next_prior(dims):
    """One update after the other is the update with both."""
    world = WORLDS[dims]
    x = observed(world, 2)
    first = infer(world, world.prior, x[0])
    second, joint = infer(world, first, x[1]), infer(world, world.prior, x, iid=True)
    cell, sd = cells(first), joint.stddev
    assert ((second.mean - joint.mean).abs() < cell**2 / sd).all()
    assert ((second.variance - joint.variance).abs() < cell**2).all()
    twice = infer(world, first, x[0])
    assert not ((twice.mean - joint.mean).abs() < cell**2 / sd).all(), "saboteur: the first observation again"


class Lamp(Simulator):
    """x ~ N(distance theta, 1): the further away, the more is learnt."""

    parameters = (Parameter("theta", -5, 5),)
    designs = (Parameter("distance", 0, 10),)
    x_shape = (1,)

    def sample(self, theta, design, generator):
        return design * theta + torch.randn(theta.shape, generator=generator, dtype=torch.float64), None

    def log_likelihood(self, theta, x, design=None):
        return -((x - design * theta) ** 2).sum(-1) / 2


def test_designs():
    lamp = Lamp()
    x, design = torch.tensor([[1.0], [4.0]]).double(), torch.tensor([[1.0], [2.0]]).double()
    prior = Independent(Normal(torch.zeros(1).double(), 1.0), 1)

    def exact(x, distance):
        precision = 1 + (distance**2).sum()
        return Normal((x * distance).sum() / precision, precision**-0.5)

    assert close(infer(lamp, prior, x[1], design=design[1]), exact(x[1], design[1]))
    assert not close(infer(lamp, prior, x[1], design=design[0]), exact(x[1], design[1])), "saboteur: another design"
    assert close(infer(lamp, prior, x, design=design[1], iid=True), exact(x, design[1].expand(2, 1)))
    assert close(infer(lamp, prior, x, design=design, iid=True), exact(x, design))
    rows = infer(lamp, prior, x, design=design, batch=True)
    shared = infer(lamp, prior, x, design=design[0], batch=True)
    for k in range(2):
        assert torch.allclose(rows.mean[k], exact(x[k], design[k]).mean, atol=1e-4)
        assert torch.allclose(shared.mean[k], exact(x[k], design[0]).mean, atol=1e-4)
    both = infer(lamp, prior, x[None].expand(3, 2, 1), design=design[None].expand(3, 2, 1), iid=True, batch=True)
    assert both.mean.shape == (3, 1) and torch.allclose(both.mean, exact(x, design).mean.expand(3, 1), atol=1e-4)
    per_problem = infer(lamp, prior, x[None].expand(2, 2, 1), design=design, iid=True, batch=True)
    for k in range(2):
        assert torch.allclose(per_problem.mean[k], exact(x, design[k].expand(2, 1)).mean, atol=1e-4)
    with pytest.raises(InputError, match=r"design has shape \(3, 1\), expected \(1,\) or \(2, 1\)"):
        infer(lamp, prior, x, design=torch.ones(3, 1), iid=True)
    with pytest.raises(InputError, match=r"design has shape \(2, 1\), expected \(1,\)\."):
        infer(lamp, prior, x[0], design=design)
    with pytest.raises(InputError, match=r"design has shape \(2,\), expected \(\*, 1\) for \['distance'\]"):
        infer(lamp, prior, x[0], design=[1.0, 2.0])


def test_equal_observations_count_each():
    """Class labels come many times; each is evaluated once and counted as often as it came."""
    board = GaltonBoard()
    x = torch.tensor([[14.0], [14.0], [17.0], [14.0]])
    posterior = infer(board, board.prior, x, iid=True)
    theta = torch.linspace(-0.95, -0.05, 7).double()[:, None]
    exact = sum(board.log_likelihood(theta, row) for row in x)
    difference = posterior.log_prob(theta) - exact
    once = posterior.log_prob(theta) - sum(board.log_likelihood(theta, row) for row in x.unique(dim=0))
    assert difference.std() < 0.01 < once.std()


def test_sets_of_labels_are_counted_together():
    board = GaltonBoard()
    theta = torch.tensor([-0.9, -0.5, -0.1]).double().repeat_interleave(40)[:, None]
    x = board.sample(theta, None, torch.Generator().manual_seed(1))[0].reshape(3, 40, 1)
    many = infer(board, board.prior, x, batch=True, iid=True)
    alone = torch.stack([infer(board, board.prior, row, iid=True).mean for row in x])
    assert torch.allclose(many.mean, alone, atol=1e-9)
    assert not torch.allclose(many.mean, alone.roll(1, 0), atol=0.1), "saboteur: sets exchanged"


def test_the_published_balls():
    """500 balls thrown by others: the exact posterior, known from a quadrature of its own."""
    path = Path(sbi_core.simulators.__file__).parent / "data" / "galton_published_balls.csv"
    balls = np.loadtxt(path, skiprows=1)
    assert len(balls) == 500
    board = GaltonBoard()
    posterior = infer(board, board.prior, balls, iid=True)
    assert round(float(posterior.mean), 4) == -0.7048 and round(float(posterior.stddev), 4) == 0.0347
    theta = torch.linspace(-1, 0, 20_001).double()[:, None]
    slots = board.log_probabilities(theta)
    total = slots[:, torch.tensor(balls).long()].sum(1)
    weight = torch.softmax(total, 0)
    mean = (weight * theta[:, 0]).sum()
    assert torch.allclose(posterior.mean, mean, atol=1e-6)
    assert posterior.flags == () and "cells per standard deviation" in posterior.verdicts["resolution"]


def test_open_priors():
    world = LinearGaussian(1)
    x = torch.tensor([3.0]).double()
    flat = Independent(Normal(torch.zeros(1).double(), 100.0), 1)
    assert close(infer(world, flat, x), LinearGaussian(1, prior_std=100.0).posterior(x))
    above = infer(world, Independent(LogNormal(torch.zeros(1).double(), 0.5), 1), x)
    assert torch.isneginf(above.log_prob(torch.tensor([[-0.1]]))).all() and float(above.mean) > 1


@pytest.mark.parametrize("prior", [Cauchy(torch.zeros(1).double(), 1.0), StudentT(torch.ones(1).double() * 2)])
def test_a_prior_without_moments_is_refused(prior):
    with pytest.raises(InputError, match="the prior has no finite range"):
        infer(LinearGaussian(1), Independent(prior, 1), [0.5])


def test_whole_numbers_are_refused():
    class Counter(LinearGaussian):
        def __init__(self):
            super().__init__(1)
            self.parameters = (Parameter("k", 0, 5, integer=True),)

    with pytest.raises(InputError, match=r"parameters \['k'\] take whole numbers only"):
        infer(Counter(), UniformPrior(Counter().parameters), [0.5])


@pytest.mark.parametrize("slope", [0.0, 1.001])
def test_a_narrow_posterior_in_a_wide_prior_is_found(slope):
    """A point, and a narrow ridge across the prior, each much narrower than the first cells."""
    world = LinearGaussian(matrix=[[1.0, 0.0], [slope, 1.0]], latent_std=1e-3, noise_std=1e-3)
    x = torch.tensor([0.3, 0.4])
    posterior = infer(world, world.prior, x)
    assert close(posterior, world.posterior(x)) and posterior.flags == ()


def test_a_ridge_across_the_cells_says_that_the_grid_is_too_coarse():
    world = LinearGaussian(matrix=[[1.0, 1.0], [1e-3, -1e-3]], latent_std=1e-3, noise_std=1e-3)
    posterior = infer(world, world.prior, torch.tensor([0.3, 0.0]))
    assert posterior.verdicts["resolution"].startswith("too coarse") and "method='hmc'" in posterior.flags[0]


def test_a_posterior_at_the_edge_of_the_prior():
    board = GaltonBoard()
    posterior = infer(board, board.prior, torch.full((50, 1), 15.0), iid=True)
    assert any("edge of the prior" in flag for flag in posterior.flags)


@pytest.mark.parametrize(
    ("x", "options", "words"),
    [
        ([1.0, 2.0, 3.0], {}, ["(2,)", "(3,)"]),
        (1.0, {}, ["(2,)", "()"]),
        ([[1.0], [2.0]], {}, ["(2,)", "(2, 1)"]),
        ([[1.0, 2.0], [3.0, 4.0]], {}, ["(2,)", "(2, 2)", "iid=True", "batch=True"]),
        ([1.0, 2.0], {"iid": True}, ["(n, 2)", "(2,)"]),
        ([[1.0, 2.0]], {"iid": True, "batch": True}, ["(B, n, 2)", "(1, 2)"]),
        ([[[1.0, 2.0]]], {"iid": True}, ["(n, 2)", "(1, 1, 2)"]),
        ([1.0, float("nan")], {}, ["NaN", "[1]"]),
        ([[1.0, 2.0], [float("inf"), 0.0]], {"iid": True}, ["infinite", "[1, 0]"]),
        (np.zeros((0, 2)), {"iid": True}, ["(0, 2)", "no observation"]),
        ([1.0, 2j], {}, ["complex"]),
        (["a", "b"], {}, ["expected an array of numbers"]),
    ],
)
def test_what_is_no_observation_is_refused(x, options, words):
    world = LinearGaussian(2)
    with pytest.raises(InputError) as caught:
        infer(world, world.prior, x, **options)
    assert all(word in str(caught.value) for word in ["x_obs", *words]), str(caught.value)


def test_plain_numbers_where_an_observation_is_one_number():
    world = LinearGaussian(1)
    one, several = infer(world, world.prior, 0.7), infer(world, world.prior, [0.7, 0.9], iid=True)
    assert close(one, world.posterior(torch.tensor([0.7])))
    assert close(several, world.posterior(torch.tensor([[0.7], [0.9]])))
    with pytest.raises(InputError, match=r"x_obs has shape \(2,\).*iid=True"):
        infer(world, world.prior, [0.7, 0.9])


@pytest.mark.parametrize("label", [32.0, -1.0, 3.5])
def test_what_is_no_label_is_refused(label):
    with pytest.raises(InputError, match="x_obs holds values that are no label from 0 to 31"):
        infer(GaltonBoard(), GaltonBoard().prior, [[3.0], [label]], iid=True)


def test_priors_that_do_not_fit_are_refused():
    world = LinearGaussian(2)
    x = [0.0, 0.0]
    with pytest.raises(InputError, match=r"prior.*3.*2 parameters"):
        infer(world, LinearGaussian(3).prior, x)
    with pytest.raises(InputError, match=r"Independent\(prior, 1\)"):
        infer(world, Normal(torch.zeros(2), 1.0), x)
    with pytest.raises(InputError, match="Distribution, got float"):
        infer(world, 1.0, x)
    with pytest.raises(InputError, match="the prior has no parameter 'theta_1'"):
        infer(world, UniformPrior([Parameter("a", 0, 1), Parameter("b", 0, 1)]), x)
    with pytest.raises(InputError, match="another order"):
        infer(world, UniformPrior(world.parameters[::-1]), x)


def test_an_impossible_observation():
    board = GaltonBoard()
    with pytest.raises(InputError, match="x_obs is zero"):
        infer(board, board.prior, [0], design=[20, 2])


def test_estimators():
    world = LinearGaussian(2)
    data = simulate(world, 200, seed=1, progress=False)
    head = RatioEstimator.from_data(data, hidden=(8,))
    with pytest.raises(InputError, match="RatioEstimator is not trained"):
        infer(head, world.prior, [0.0, 0.0])
    trained = fit(head, carl, data, seed=1, max_epochs=5, progress=False).estimator
    posterior = infer(trained, world.prior, [0.5, -0.5])
    assert names(posterior.parameters) == ["theta_1", "theta_2"] and not posterior.mean.requires_grad
    theta = torch.tensor([[0.0, 0.0], [0.5, 0.5], [-1.0, 1.0]]).double()
    with torch.no_grad():
        wanted = trained.log_likelihood(theta, torch.tensor([0.5, -0.5])) + world.prior.log_prob(theta)
    got = posterior.log_prob(theta)
    assert torch.allclose(got - got[0], wanted - wanted[0], atol=4 * float(cells(posterior).sum()))
