"""Chosen simulations: where members disagree, inside what is believed, round by round."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from chosen_worlds import LINE, SMALL, TOY, Shifted, member, small, world_of_slopes
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from sbi_core import Events, InputError, MissingGold, Parameter, UniformPrior, infer, simulate
from sbi_core.design import acquire
from sbi_core.design.acquisition import _flags
from sbi_core.design.explore import at_x_obs, everywhere
from sbi_core.design.label import Labeller
from sbi_core.design.region import BAND, edge, survey
from sbi_core.estimators import LikelihoodEstimator, nle, npe, nre, nre_gold, sally

pytestmark = pytest.mark.filterwarnings("ignore::sbi_core.errors.SbiWarning")  # short trainings say so


def box(dims):
    return UniformPrior([Parameter(f"t{k}", -1.0, 1.0) for k in range(dims)])


def flow(rows):
    return LikelihoodEstimator.from_data(rows, flow="maf", transforms=1, flow_hidden=8)


def normal_look(sigma, at=0.0):
    return lambda theta: -(((theta - at) / sigma) ** 2).sum(-1)[None] / 2


# --- where members disagree


def disagreeing():
    """At .5 they do, where both believe; at -.8, which neither believes in, more; constants mean nothing."""

    def one(sign, constant):
        def look(t):
            off = (t - 0.5) / 0.05
            tail = torch.where(t < -0.6, -40 + 10 * sign, 0.0)
            return constant + 0.3 * sign * off * (-(off**2) / 2).exp() + tail

        return member(look)

    return SimpleNamespace(members=[one(1.0, 0.0), one(-1.0, 300.0)])


@pytest.mark.parametrize("epsilon", [None, 1e-3])
def test_thetas_are_chosen_where_believing_members_disagree(epsilon):
    found = at_x_obs(disagreeing(), box(1), torch.zeros(1), {}, epsilon, 8192, 1)
    theta, weight = found.cloud.theta[:, 0], found.weight(1.0)
    near, tail = (theta - 0.5).abs() < 0.15, theta < -0.6
    assert float(weight.sum()) == pytest.approx(1)
    assert float(weight[near].sum()) > 0.9 and float(found.cloud.mass[near].sum()) == pytest.approx(0.15, abs=0.01)
    assert float(weight[tail].sum()) < 1e-4
    raw = torch.stack([m.observe(None)(found.cloud.theta) for m in disagreeing().members]).std(0) * found.cloud.mass
    assert float((raw / raw.sum())[near].sum()) < 0.2, "saboteur: the spread of f counts constants and tails"
    assert float(found.apart[0]) == pytest.approx(float(found.apart[1])), "two members are as far from their mean"
    flat = found.weight(0.0)
    assert found.effective > 1000
    assert float(flat[near].sum()) == pytest.approx(0.15 if epsilon is None else 0.1875, abs=0.01)


def test_a_batch_is_no_heap_of_copies():
    found = at_x_obs(disagreeing(), box(1), torch.zeros(1), {}, None, 8192, 1)
    labeller = Labeller(Shifted(), box(1), nre, None, False, 3, 1)
    labeller.add_chosen(found, 1.0, 100, 1)
    theta = labeller.all_rows().theta[:, 0]
    assert len(theta.unique()) == 100 and float(theta.std()) > 0.05
    best = found.cloud.theta[found.weight(1.0).topk(100).indices, 0]
    assert float(((best - 0.5).abs() - 0.05).abs().max()) < 0.01, "saboteur: the best hundred lie at two peaks"


# --- truncation


@pytest.mark.parametrize(("dims", "sigma"), [(1, 0.1), (2, 0.05), (3, 0.005), (3, 0.4)])
def test_truncation_keeps_the_posterior(dims, sigma):
    epsilon = 0.01
    cloud, density, region = survey(box(dims), normal_look(sigma, 0.2), 8192, epsilon, 1)
    draws = 0.2 + sigma * torch.randn(40_000, dims, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    draws = draws[(draws.abs() < 1).all(1)]
    outside = 1 - float(region.contains(draws).double().mean())
    error = math.sqrt(epsilon / len(draws)) + math.sqrt(epsilon / 2048)
    assert abs(outside - epsilon) < 4 * error
    assert float(cloud.mass.sum()) == pytest.approx(1) and float((cloud.mass * density).sum()) == pytest.approx(1)
    inside = region.sample(2000, 2)
    assert region.contains(inside.theta).all() and float(inside.mass.sum()) == pytest.approx(region.mass, rel=0.1)
    if sigma < 0.4:  # a ball of chi^2 quantile radius
        radius = {1: 2.576, 2: 3.035, 3: 3.368}[dims] * sigma
        volume = {1: 2 * radius, 2: math.pi * radius**2, 3: 4 / 3 * math.pi * radius**3}[dims]
        assert region.mass == pytest.approx(volume / 2**dims, rel=0.15)
        off = (inside.theta - 0.2).square().sum(1) / radius**2
        assert float(off.mean()) == pytest.approx(dims / (dims + 2), abs=0.03), "uniform inside, not crowded"
    assert edge(region, cloud, density.mean(0)) == pytest.approx(BAND * epsilon, rel=0.2)


def test_truncation_of_other_priors():
    normal = Independent(Normal(torch.zeros(2).double(), 5 * torch.ones(2).double()), 1)
    parts = Independent(Normal(torch.tensor([[-1.0], [1.0]]).double(), torch.ones(2, 1).double()), 1)
    for prior, dims in ((normal, 2), (MixtureSameFamily(Categorical(torch.ones(2).double()), parts), 1)):
        cloud, density, region = survey(prior, normal_look(0.1), 4096, 1e-3, 1)
        mean = (cloud.mass * density[0]) @ cloud.theta
        assert mean.abs().max() < 0.02 and region.contains(torch.zeros(1, dims).double())
        assert not region.contains(torch.full((1, dims), 0.6).double())
        variance = (cloud.mass * density[0]) @ cloud.theta**2
        assert torch.allclose(variance, torch.tensor(0.01).double(), rtol=0.1)


def test_a_posterior_that_has_moved_touches_the_edge():
    _, _, region = survey(box(1), normal_look(0.05), 4096, 1e-3, 1)
    for at, low, high in ((0.0, 0.005, 0.02), (0.1, 0.1, 0.5), (0.5, 0.99, 1.0)):
        cloud, density, _ = survey(box(1), normal_look(0.05, at), 4096, 1e-3, 2)
        assert low <= edge(region, cloud, density[0]) <= high + 1e-9


# --- rounds


def test_the_same_seed_chooses_the_same_for_any_workers():
    world, x_obs = Shifted(0.05), torch.tensor([0.3])
    asked = {"n": 240, "x_obs": x_obs, "rounds": 2, "members": 2, "head": small, **SMALL}
    one, two, other = (
        acquire(world, nre, seed=seed, workers=workers, **asked) for seed, workers in ((1, 1), (1, 2), (2, 1))
    )
    assert torch.equal(one.simulations.theta, two.simulations.theta)
    assert torch.equal(one.simulations.x, two.simulations.x)
    assert not torch.equal(one.simulations.theta, other.simulations.theta)
    ends = torch.tensor([[0.1], [0.4]]).double()
    values = [found.estimator.log_likelihood(ends, x_obs).tolist() for found in (one, two, other)]
    assert values[0] == values[1] != values[2]


def test_rounds_close_in():
    world, x_obs = Shifted(0.05), torch.tensor([0.3])
    asked = {"n": 450, "x_obs": x_obs, "rounds": 3, "members": 2, "share": 0.2, "head": small, **SMALL}
    one = acquire(world, nre, seed=1, **asked)
    assert [(r.n, r.from_prior) for r in one.rounds] == [(150, 150), (150, 30), (150, 30)]
    assert one.number.bincount().tolist() == [150, 150, 150] and int(one.from_prior.sum()) == 210
    last = (one.number == 2) & ~one.from_prior
    assert one.rounds[-1].region.contains(one.simulations.theta[last]).all()
    assert one.rounds[-1].acceptance < 0.4 and one.rounds[0].acceptance == 1 and math.isnan(one.rounds[0].edge)
    assert (one.simulations.theta[last] - 0.3).abs().max() < 0.4
    assert one.simulations.info.proposal is None and one.simulations.info.seed is None
    assert all(0 <= r.disagreement <= r.largest <= 1 and math.isfinite(r.loss) for r in one.rounds)
    posterior = infer(one.estimator, world.prior, x_obs, seed=1)
    assert float(posterior.mean) == pytest.approx(0.3, abs=0.03) and float(posterior.stddev) < 0.1
    assert len(str(one).splitlines()) == 4 + len(one.flags)
    flags = _flags(replace(one.rounds[-1], edge=0.3), 1e-3, 1e3)
    assert "touches the edge" in flags[-1] and "0.3 of its mass" in flags[-1] and "0.01 were expected" in flags[-1]
    assert not _flags(replace(one.rounds[-1], edge=0.05, fits=()), 1e-3, 1e3)
    few = _flags(replace(one.rounds[-1], edge=0.05, fits=()), 1e-3, 20.2)
    assert few == ("only about 20 of the thetas that were looked at matter to x_obs. Raise candidates",)


def test_without_an_observation_all_x_count():
    def one(sign):
        def observe(x, design=None):
            return lambda t: -((x[..., 0] - t[..., 0]) ** 2) / 0.02 * (1 + 0.5 * sign * (t[..., 0] > 0))

        return SimpleNamespace(axes=tuple(LINE), x_shape=(1,), observe=observe)

    world = Shifted()
    labeller = Labeller(world, world.prior, nre, None, False, 1, 1)
    labeller.add_of_prior(300, 0)
    found = everywhere(SimpleNamespace(members=[one(1), one(-1)]), world.prior, labeller.seen(), 100, 1)
    weight, theta = found.weight(1.0), found.cloud.theta[:, 0]
    assert float(weight[theta > 0].sum()) > 0.85 and float(found.apart[0]) > 0.02
    assert float(found.weight(0.0)[theta > 0].sum()) == pytest.approx(0.5, abs=0.01), "saboteur: unless it is ignored"
    done = acquire(world, nle, n=100, rounds=2, members=2, seed=1, head=flow, **SMALL)
    assert done.rounds[1].region is None and done.rounds[1].acceptance == 1


def test_several_observations_and_runs():
    world = Shifted(0.3)
    several = acquire(world, nre, n=100, rounds=2, x_obs=torch.zeros(5, 1), iid=True, seed=1, head=small, **SMALL)
    assert several.simulations.x.shape == (100, 1) and several.rounds[1].acceptance < 1
    plain = acquire(world, nre, n=60, rounds=2, x_obs=torch.zeros(1), share=1, members=2, seed=1, head=small, **SMALL)
    assert plain.from_prior.all() and plain.rounds[1].region is None and plain.rounds[1].acceptance == 1
    events = Events(TOY, 20)
    run = simulate(events, 1, seed=5, progress=False).x[0]
    runs = acquire(events, nre, n=60, rounds=2, x_obs=run, members=2, seed=1, head=small, **SMALL)
    assert runs.simulations.x.shape == (60, 20, 1) and runs.rounds[1].n == 30
    asked = {"designs": UniformPrior(world_of_slopes.designs), "design": [2.0], "head": small, **SMALL}
    sloping = acquire(world_of_slopes, nre, n=100, rounds=2, x_obs=torch.zeros(1), seed=1, **asked)
    assert len(sloping.simulations.design.unique()) == 100 and sloping.simulations.theta_alt is None


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        (
            {"loss": npe},
            InputError,
            r"loss = npe learns a density of theta, which depends on how theta was chosen. Use",
        ),
        ({"loss": sally}, InputError, "loss = sally learns a score"),
        ({"loss": nre_gold}, MissingGold, "loss = nre_gold needs gold, and simulator 'Shifted' has no log_joint. Use"),
        ({"n": 79}, InputError, "n = 79: expected at least 80, 20 for each of rounds = 4"),
        ({"rounds": 0}, InputError, "rounds = 0: expected at least 1"),
        ({"members": 1}, InputError, "members = 1: expected at least 2, or nothing can disagree"),
        ({"exponent": -1.0}, InputError, "exponent = -1.0: expected a number from 0 up"),
        ({"epsilon": 0.5}, InputError, "epsilon = 0.5: expected a mass between 0 and 0.1, or None"),
        ({"share": 1.5}, InputError, "share = 1.5: expected a number from 0 to 1"),
        ({"candidates": 100}, InputError, "candidates = 100: expected at least 1600, 8 for each of n = 200"),
        ({"prior": box(2)}, InputError, r"prior has event shape \(2,\)"),
        ({"iid": True}, InputError, "x_obs is not given, which design, n_events and iid describe"),
        ({"designs": [1.0]}, InputError, "designs are given, but simulator 'Shifted' has none. Leave them out"),
        ({"x_obs": [0.0], "design": [1.0]}, InputError, "design is given without designs"),
        ({"x_obs": [0.0, 1.0]}, InputError, r"x_obs has shape \(2,\), expected \(1,\)"),
        ({"x_obs": [math.nan]}, InputError, "x_obs is NaN or infinite"),
    ],
    ids=lambda value: "" if not isinstance(value, dict) else next(iter(value)),
)
def test_arguments(given, error, said):
    with pytest.raises(error, match=said):
        acquire(Shifted(), **{"loss": nre, "n": 200, **SMALL, **given})


def test_estimators_that_are_not_numbers():
    with pytest.raises(InputError, match="NaN at 100 of 100 thetas"):
        survey(box(1), lambda theta: torch.full((1, len(theta)), math.nan), 100, 1e-3, 1)
    with pytest.raises(InputError, match="minus infinity at all thetas"):
        survey(box(1), lambda theta: torch.full((1, len(theta)), -math.inf), 100, 1e-3, 1)
