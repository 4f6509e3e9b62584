"""The exact filter against the matrix of all rates, and the simulator against the filter."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from epidemics_by_hand import probability
from measures import z_of_mean
from scipy.stats import gamma as gamma_distribution

from sbi_core import Events, InputError, UniformPrior, infer, joint_score, simulate
from sbi_core.seeding import seeded
from sbi_core.simulators import Epidemic

RANGES = {"beta": (0.3, 3.0), "gamma": (0.1, 1.0)}
THETA = torch.tensor([1.3, 0.5], dtype=torch.float64)
KINDS = {
    "prevalence": {"observed": "prevalence", "reporting": 0.8},
    "incidence": {"observed": "incidence", "reporting": 0.6},
    "everyone": {"observed": "incidence", "reporting": 1.0, "dispersion": 0.3},
    "dispersed": {"observed": "prevalence", "reporting": 0.8, "dispersion": 0.15},
    "two stages": {"observed": "prevalence", "reporting": 0.8, "stages": 2},
    "three, dispersed": {"observed": "incidence", "reporting": 0.7, "dispersion": 0.1, "stages": 3},
}
by_kind = pytest.mark.parametrize("kind", KINDS)


def world_of(kind, population=5, infected=2, times=(1.0, 2.5), **more):
    return Epidemic(population=population, infected=infected, times=times, **KINDS[kind], **RANGES, **more)


def outcomes(world):
    """All x that can be, (X, K)."""
    numbers = [torch.arange(world.population + 1.0).double()] * len(world.times)
    return torch.cartesian_prod(*numbers).reshape(-1, len(world.times))


@by_kind
def test_likelihood_is_that_of_the_matrix_of_rates(kind):
    world = world_of(kind)
    x = outcomes(world)
    exact = torch.tensor([probability(world, THETA.tolist(), row, world.times) for row in x.tolist()])
    value = world.log_likelihood(THETA, x).exp()
    assert torch.allclose(value, exact, rtol=1e-9, atol=1e-13) and float(value.sum()) == pytest.approx(1, abs=1e-12)
    for wrong in (THETA.flip(0), THETA * torch.tensor([1.01, 1.0])):
        assert not torch.allclose(world.log_likelihood(wrong, x).exp(), exact, rtol=1e-3), "saboteur: other rates"


@by_kind
def test_rows_have_the_probabilities(kind):
    world = world_of(kind, population=5 if "stages" in KINDS[kind] else 8)
    x, theta = outcomes(world), THETA.expand(20_000, 2)
    found = simulate(world, 20_000, seed=1, proposal=theta, progress=False).x
    came = (found[:, None] == x).all(-1).double()
    assert (came.sum(1) == 1).all()

    def worst(at):
        chance = world.log_likelihood(at, x).exp()
        often = chance > 3e-3
        return z_of_mean(came[:, often], chance[often])

    assert worst(THETA) < 4 < worst(THETA * torch.tensor([1.15, 1.0]))


@by_kind
def test_score_is_the_gradient(kind):
    """That of automatic differentiation through the filter, and a difference of log likelihoods; at its own times."""
    world = world_of(kind)
    x = outcomes(world)
    x = x[world.log_likelihood(THETA, x).isfinite()][::3]
    times = torch.tensor([0.0, 0.4], dtype=torch.float64) + torch.linspace(0.5, 2.0, len(x)).double()[:, None]
    leaf = THETA.expand(len(x), 2).clone().requires_grad_()
    slope = torch.autograd.grad(world.log_likelihood(leaf, x, times).sum(), leaf)[0]
    score = world.score(THETA, x, times)
    assert torch.allclose(score, slope, rtol=1e-9, atol=1e-11)
    for d, step in enumerate(1e-5 * torch.eye(2, dtype=torch.float64)):
        ends = [world.log_likelihood(THETA + sign * step, x, times) for sign in (1, -1)]
        assert torch.allclose(score[:, d], (ends[0] - ends[1]) / 2e-5, rtol=1e-6, atol=1e-7)
    assert not torch.allclose(world.score(THETA, x, times * 1.01), slope, rtol=1e-3), "saboteur: later"


@pytest.mark.parametrize("kind", list(KINDS)[:-1])
def test_mean_joint_score_given_x_is_the_score(kind):
    """E[(t - score) phi(x)] = 0, at designs of all lengths."""
    world = world_of(kind, population=4 if "stages" in KINDS[kind] else 6, infected=1, horizon=3.0)
    with seeded(5):
        design = UniformPrior(world.designs).sample(torch.Size([2000])).sort(-1).values
    rows = simulate(world, 2000, seed=1, design=design, progress=False)
    score = world.score(rows.theta, rows.x, rows.design)
    x = rows.x.double()
    phi = torch.cat([torch.ones(len(x), 1), x, x.prod(1, keepdim=True), rows.design], 1)[:, None]

    def worst(z):
        joint = joint_score(world, replace(rows, z=z))
        return z_of_mean(((joint - score) * rows.theta)[..., None] * phi)

    longer = rows.z * torch.tensor([1.0, 1.0, 1.0, 1.2])
    assert worst(rows.z) < 4 < worst(longer), "saboteur: a fifth more illness"


def test_information_is_the_variance_of_the_score():
    world = world_of("incidence", population=8)
    rows, x = simulate(world, 20_000, seed=2, proposal=THETA, progress=False), outcomes(world)
    at = (rows.x @ torch.tensor([9.0, 1.0]).to(rows.x)).long()
    for values, latent in ((world.score(THETA, x)[at], False), (joint_score(world, rows), True)):
        information = world.fisher_information(THETA, latent=latent)
        square = values[:, :, None] * values[:, None]
        assert z_of_mean(square, information.flatten()) < 4 < z_of_mean(square, 1.1 * information.flatten())
    more = world.fisher_information(THETA, latent=True) - world.fisher_information(THETA)
    assert bool((torch.linalg.eigvalsh(more) > 0).all()), "the latents know more than counts"
    two = world.fisher_information(THETA.expand(3, 2), torch.tensor([[1.0, 2.5], [0.5, 0.5], [2.0, 4.0]]))
    assert two.shape == (3, 2, 2) and torch.allclose(two[0], world.fisher_information(THETA))


@pytest.mark.parametrize("stages", [1, 4])
def test_one_who_infects_nobody_is_ill_for_an_erlang_time(stages):
    world = Epidemic(
        population=1, infected=1, observed="prevalence", times=[1.0, 2.0, 6.0], reporting=1.0, stages=stages, **RANGES
    )
    rows = simulate(world, 4000, seed=3, proposal=THETA, progress=False)
    survival = gamma_distribution(stages, scale=1 / (stages * 0.5)).sf
    assert z_of_mean(rows.x, torch.tensor(survival(world.times))) < 4
    other = gamma_distribution(stages + 1, scale=1 / ((stages + 1) * 0.5)).sf(world.times)
    assert z_of_mean(rows.x, torch.tensor(other)) > 4, "saboteur: another stage"
    ill = torch.tensor([[1.0, 1.0, 0.0]])
    exact = np.log(survival(2.0) - survival(6.0))
    assert float(world.log_likelihood(THETA, ill)) == pytest.approx(exact, abs=1e-10)


def test_thirty_individuals():
    world = Epidemic(population=30, infected=1, observed="prevalence", times=[2.0, 4.0], reporting=0.8, **RANGES)
    x = outcomes(world)
    log_p = world.log_likelihood(THETA, x)
    assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-12)
    assert world.is_exact
    found = simulate(world, 10_000, seed=4, proposal=THETA, progress=False).x
    each = found @ torch.tensor([31.0, 1.0]).to(found)
    assert z_of_mean(log_p[each.long()], float((log_p.exp() * log_p).sum())) < 4
    other = world.log_likelihood(THETA * torch.tensor([1.05, 1.0]), x)
    assert z_of_mean(other[each.long()], float((other.exp() * other).sum())) > 4, "saboteur: more infections"


def test_posterior_is_prior_times_likelihood():
    world, x = world_of("prevalence"), torch.tensor([2.0, 1.0])
    posterior = infer(world, world.prior, x)
    grid = torch.cartesian_prod(*[torch.linspace(low, high, 41).double() for low, high in RANGES.values()])
    mean = world.log_likelihood(grid, x).softmax(0) @ grid
    assert torch.allclose(posterior.mean, mean, rtol=0.02)
    later = world.log_likelihood(grid, x, torch.tensor([1.0, 3.5])).softmax(0) @ grid
    assert not torch.allclose(posterior.mean, later, rtol=0.02), "saboteur: counted later"


def test_counts_that_cannot_be_have_no_probability():
    world = world_of("prevalence", population=4, infected=1)
    x = torch.tensor([[5.0, 0.0], [-1.0, 0.0], [0.5, 0.0], [0.0, 0.0]])
    assert world.log_likelihood(THETA, x).isneginf().tolist() == [True, True, True, False]
    sure = world_of("everyone", population=4, infected=1)
    many = torch.tensor([[2.0, 2.0], [1.0, 2.0]])  # of three who are susceptible
    assert sure.log_likelihood(THETA, many).isneginf().tolist() == [True, False]
    at_once = sure.log_likelihood(THETA, torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([0.0, 0.0]))
    assert at_once[0].abs() < 1e-14 and at_once[1].isneginf()


def test_long_times_are_parted():
    """A mean of 1,500 steps, whose terms cannot be summed at once."""
    world = Epidemic(population=3, infected=1, observed="prevalence", times=[400.0, 500.0], reporting=1.0, **RANGES)
    theta = torch.tensor([0.3, 0.004])
    value = world.log_likelihood(theta, outcomes(world)).exp()
    exact = [probability(world, theta.tolist(), row, world.times) for row in outcomes(world).tolist()]
    assert torch.allclose(value, torch.tensor(exact), rtol=1e-8, atol=1e-12)


def test_what_costs_too_much_is_refused():
    school = Epidemic(population=763, infected=1, observed="prevalence", times=range(1, 15), reporting=0.9)
    assert not school.is_exact
    for ask in (school.log_likelihood, school.score):
        with pytest.raises(InputError, match=r"population = 763.* follows 582,932 states, expected at most 200,000"):
            ask(THETA, torch.zeros(14))
    with pytest.raises(InputError, match=r"counted 10 times: 8.2e\+14 outcomes, expected at most 20,000"):
        Epidemic(population=40).fisher_information(THETA)
    weeks = Epidemic(population=30)
    assert not weeks.is_exact and weeks.log_likelihood(THETA / 10, torch.zeros(10)).isfinite()


def test_several_epidemics_are_events():
    world = world_of("incidence")
    runs = simulate(Events(world, 3), 50, seed=1, progress=False)
    each = torch.stack([world.log_likelihood(runs.theta, runs.x[:, k]) for k in range(3)]).sum(0)
    assert torch.allclose(Events(world, 3).log_likelihood(runs.theta, runs.x), each)


@pytest.mark.parametrize(
    ("theta", "x", "said"),
    [
        (
            [0.5, 0.2],
            [1.0, 1.0, 1.0],
            r"theta has shape \(2,\) and x \(3,\), expected \(\*, 2\), which are beta and gamma",
        ),
        ([0.5, 0.2, 0.1], [1.0, 1.0], r"theta has shape \(3,\)"),
        ([-0.5, 0.2], [1.0, 1.0], "expected rates beta and gamma per day from 0 up"),
        ([float("nan"), 0.2], [1.0, 1.0], "theta = \\[nan, .* from 0 up"),
        ([1e9, 0.2], [1.0, 1.0], "not so high that the exact likelihood takes minutes"),
    ],
)
def test_questions_that_have_no_answer_are_refused(theta, x, said):
    world = world_of("prevalence")
    for ask in (world.log_likelihood, world.score):
        with pytest.raises(InputError, match=said):
            ask(torch.tensor(theta), torch.tensor(x))


def test_the_smallest_and_the_fullest_epidemics():
    """One individual, who recovers at rate gamma whatever beta is; and nobody left to infect."""
    alone = Epidemic(population=1, infected=1, observed="prevalence", times=[1.0, 3.0], reporting=1.0, **RANGES)
    exact = torch.tensor([-3 * 0.5, -0.5 + np.log(1 - np.exp(-1.0)), np.log(1 - np.exp(-0.5)), -np.inf]).double()
    x = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    assert torch.allclose(alone.log_likelihood(THETA, x), exact, atol=1e-12)
    full = Epidemic(population=6, infected=6, times=[1.0, 3.0], **RANGES)
    assert full.log_likelihood(THETA, torch.zeros(2)).abs() < 1e-12
    assert float(full.fisher_information(THETA).abs().max()) < 1e-12
