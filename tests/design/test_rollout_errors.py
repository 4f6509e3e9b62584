"""How far off an estimate may be, and what is refused."""

import math
import subprocess
import sys
from functools import cache

import pytest
import torch
from known_gains import EPIDEMIC, TOY, linear
from measures import z_of_mean
from torch.distributions import MultivariateNormal, Normal

from sbi_core import Events, FunctionSimulator, InputError, Parameter, Simulator, UniformPrior
from sbi_core.design.belief import points
from sbi_core.design.estimates import Rollouts, _jackknifed, _slopes
from sbi_core.design.information import contrastive_bound, nested_bound, posterior_gain
from sbi_core.design.readers import of_runs, reader
from sbi_core.design.rollouts import experiments, roll, see
from sbi_core.estimators import RatioEstimator
from sbi_core.seeding import seeded
from sbi_core.simulators import LinearGaussian, MuonPairs

WORLD = LinearGaussian(1, latent_std=0.5, noise_std=0.5)
GAIN = float(WORLD.information_gain())


def divergence(log_sum, mean, inner):
    """The read-out's term."""
    return mean[:, 0] - log_sum + math.log(inner)


def rolled(world, n, inner, seed, *, spread):
    """Rollouts whose thetas are spread evenly, or plain draws."""
    if spread:
        return roll(reader(world), world, world.prior, None, n=n, inner=inner, seed=seed)
    with seeded(seed):
        theta, others = world.prior.sample((n,)), world.prior.sample((inner,))
    return see(reader(world), experiments(world, theta, None, seed), others)


@cache
def estimates(n, inner, spread, seeds=100):
    """Of many seeds (seeds, 6): estimate - truth and stated error, the same with control variates, the error of the
    experiments alone, and the p-value of the balance.
    """
    found = []
    for seed in range(seeds):
        one = rolled(WORLD, n, inner, seed, spread=spread)
        plain, controlled = (one.estimate(divergence, corrected=True, controlled=asked) for asked in (False, True))
        outer = float(divergence(*one.without()).std()) / n**0.5
        found.append([plain[0] - GAIN, plain[1], controlled[0] - GAIN, controlled[1], outer, one.balance()])
    return torch.tensor(found)


def rms(values):
    return float(values.square().mean().sqrt())


SIZES = [(64, 512), (200, 128), (400, 32)]
by_size = pytest.mark.parametrize(("n", "inner"), SIZES)


MUONS = Events(MuonPairs(radiation=False), 200)


def test_stated_error_where_controls_are_nearly_the_same():
    """129 GeV teaches nothing about sin2_theta_w, whose posterior means move by what the inner set makes of chance."""
    right, wrong = [], []
    for seed in range(8):
        one = roll(reader(MUONS), MUONS, MUONS.prior, torch.tensor([129.0]), n=128, inner=256, seed=seed)
        right.append(one.estimate(divergence, corrected=True, controlled=True))
        parts = [(divergence(*part), off) for part, off in zip(one._parts, one._off, strict=True)]
        wrong.append(_jackknifed([value - off @ _slopes(value, off) for value, off in parts], 128, True, True))
    for found, large_enough in ((right, True), (wrong, False)):
        value, error = torch.tensor(found, dtype=torch.float64).unbind(1)
        assert (rms((value - value.mean()) / error) < 1.1) == large_enough, "saboteur: slopes drawn anew each time"


@by_size
def test_stated_error_of_draws_is_the_error(n, inner):
    off, error, controlled, its = estimates(n, inner, False).T[:4]
    assert 0.7 < rms(off / error) < 1.3 and 0.7 < rms(controlled / its) < 1.3


def test_saboteur_error_without_the_common_set():
    """The inner set is the same for all experiments: their spread alone does not know its error."""
    off, _, _, _, outer, _ = estimates(*SIZES[-1], False).T
    assert rms(off / outer) > 1.3


@by_size
def test_stated_error_of_spread_thetas_is_large_enough(n, inner):
    off, error, controlled, its = estimates(n, inner, True).T[:4]
    assert rms(off / error) < 1.1 and rms(controlled / its) < 1.1
    assert rms(off) < rms(estimates(n, inner, False)[:, 0])


def test_control_variates_help_where_thetas_are_many():
    plain, spread = estimates(*SIZES[0], False), estimates(*SIZES[0], True)
    assert rms(plain[:, 2]) < 0.5 * rms(plain[:, 0]) and rms(spread[:, 2]) < 0.1 * rms(spread[:, 0])
    assert (estimates(*SIZES[2], False)[:, 2] == estimates(*SIZES[2], False)[:, 0]).sum() > 70, "and are else given up"


def test_slopes_of_few_experiments_are_paid_for_in_the_error():
    """21 experiments with 4 control variates: mean square error and stated variance agree, over 400 of such."""
    generator = torch.Generator().manual_seed(1)
    m, dims, found = 21, 2, []
    for _ in range(400):
        off, noise = (torch.randn(m, k, generator=generator, dtype=torch.float64) for k in (2 * dims, 1))
        mean = torch.cat([off.sum(1, keepdim=True) + noise, off], 1)[:, None].expand(m, 16, -1)
        zero = torch.zeros(m, 16, dtype=torch.float64)
        one = Rollouts(zero[:, :dims], None, zero[:, 0], zero, mean, zero, torch.zeros(16, 2 * dims).double(), 64, 0, 0)
        found.append(one.estimate(lambda log_sum, mean, inner: mean[:, 0], controlled=True))
    value, error = torch.tensor(found).T
    ratio = rms(value) / rms(error)
    assert 0.9 < ratio < 1.1 and rms(value) < 0.6 * (5 / m) ** 0.5, ratio
    without = ((m - 5) * (m - 6) / ((m - 2) * (m - 1))) ** 0.5
    assert ratio / without > 1.1, "saboteur: the spread of what is left, as if slopes came from elsewhere"


@by_size
def test_balance_is_a_p_value_where_f_is_right(n, inner):
    """Kolmogorov and Smirnov at 1e-3 for draws; of evenly spread thetas it is too large."""
    for spread in (False, True):
        p = estimates(n, inner, spread)[:, 5].sort().values
        assert (torch.arange(1, 101) / 100 - p).max() < 0.195 and p.min() > 1e-4


def test_balance_finds_what_is_wrong():
    class Half(LinearGaussian):
        def log_likelihood(self, theta, x, design=None):
            return 0.5 * super().log_likelihood(theta, x, design)

    found = [
        roll(reader(kind(1, latent_std=0.5, noise_std=0.5)), WORLD, WORLD.prior, None, n=512, inner=512, seed=1)
        for kind in (LinearGaussian, Half)
    ]
    assert found[1].balance() < 1e-4 < found[0].balance()


def test_bias_of_order_one_over_l_is_taken_off():
    """Of 128 thetas in three dimensions; the exact divergences at the same x are known."""
    world, found = LinearGaussian(3, latent_std=0.8, noise_std=0.8), []
    width = world.variance / (1 + world.variance)
    for seed in range(60):
        one = rolled(world, 100, 128, seed, spread=False)
        mean = one.rows.x / (1 + world.variance)
        exact = 0.5 * float((width + mean**2 - 1 - math.log(width)).sum(1).mean())
        found.append([one.estimate(divergence, corrected=corrected)[0] - exact for corrected in (True, False)])
    found = torch.tensor(found)
    assert z_of_mean(found[:, 0]) < 3 < 4 < z_of_mean(found[:, 1]), found.mean(0)


def test_all_there_are_have_no_error_of_draws():
    found = rolled(WORLD, 64, 512, 1, spread=True)
    assert found.estimate(divergence, drawn=False)[1] < found.estimate(divergence)[1] / 5
    assert found.estimate(divergence, drawn=False)[0] == found.estimate(divergence)[0]


# Hard edges


class Edge(Simulator):
    """x ~ U(0, theta), theta ~ U(0, 1): the gain is Euler's constant, .5772."""

    parameters = (Parameter("theta", 0, 1),)
    x_shape = (1,)

    def sample(self, theta, design, generator):
        return theta * torch.rand(theta.shape, generator=generator, dtype=torch.float64), None

    def log_likelihood(self, theta, x, design=None):
        theta, x = theta[..., 0], x[..., 0].double()
        return torch.where((x >= 0) & (x <= theta), -theta.log(), -torch.inf)


EULER = 0.5772156649


def test_impossible_thetas_count_for_nothing():
    found = posterior_gain(Edge(), Edge(), Edge().prior, n=4096, seed=1)
    assert abs(found.value - EULER) < 4 * found.error < 0.05 < abs(1.2 * found.value - EULER)
    low = contrastive_bound(Edge(), Edge(), Edge().prior, n=4096, seed=1)
    assert low.value < EULER + 3 * low.error and low.value > EULER - 0.05


def test_blocks_that_hold_all_there_is_leave_the_error_finite():
    """Of 32 thetas only the largest could have made the largest x."""
    world = Edge()
    others = points(world.prior, 32, 1, 1)
    others[-1] = 1.0
    rows = experiments(world, torch.full((50, 1), 0.99).double().where(torch.arange(50)[:, None] > 0, 1.0), None, 1)
    rows.x[0] = 0.999
    found = see(reader(world), rows, others)
    assert (found.log_sum[0] > -torch.inf).sum() == 1
    value, error = found.estimate(divergence)
    assert math.isfinite(value) and 0 < error < 1


def test_x_that_none_could_have_made_is_an_error():
    world, others = Edge(), points(Edge().prior, 32, 1, 1)
    rows = experiments(world, torch.full((50, 1), 0.99).double(), None, 1)
    rows.x[:3] = 0.9999
    with pytest.raises(InputError, match=r"EIG bound: 3 of 50 terms are not finite.*raise inner"):
        see(reader(world), rows, others).estimate(divergence)


# What is refused


class Black(FunctionSimulator):
    def __init__(self):
        super().__init__(lambda theta, rng: theta + rng.normal(size=theta.shape), LinearGaussian(1).parameters)


class Failing(LinearGaussian):
    def sample(self, theta, design, generator):
        x, z = super().sample(theta, design, generator)
        return torch.where(theta > 1, torch.nan, x), z


class Named:
    """Anything with `observe`, about parameters of its choice."""

    x_shape, trained = (1,), True

    def __init__(self, *names, designs=(), trained=True):
        self.axes = tuple(Parameter(name, -1, 1) for name in names)
        self.designs, self.trained = designs, trained

    def observe(self, x, design=None):
        return lambda theta: -((x - theta) ** 2).sum(-1)


ONE, TWO = linear(LinearGaussian(1)), linear(LinearGaussian(2))
REFUSED = {
    "one experiment": (lambda: posterior_gain(ONE.simulator, ONE.simulator, ONE.prior, n=1), "n = 1: .*at least 2"),
    "few thetas": (lambda: nested_bound(ONE.simulator, ONE.prior, inner=31), "inner = 31: expected at least 32"),
    "another length": (lambda: posterior_gain(TWO.simulator, TWO.simulator, ONE.prior), r"event shape \(1,\)"),
    "a batch": (
        lambda: nested_bound(ONE.simulator, Normal(torch.zeros(1), torch.ones(1))),
        r"Wrap it in torch.distributions.Independent",
    ),
    "another name": (
        lambda: nested_bound(ONE.simulator, UniformPrior([Parameter("mass", 0, 1)])),
        r"parameters of the prior are \['mass'\]",
    ),
    "black box": (lambda: nested_bound(Black(), Black().prior), "'Black' states no exact log_likelihood"),
    "black box of itself": (lambda: posterior_gain(Black(), Black(), Black().prior), "Train an estimator"),
    "untrained": (lambda: of_runs(RatioEstimator(ONE.simulator.parameters, (1,)), ONE.simulator), "is not trained"),
    "other parameters": (lambda: of_runs(Named("mass"), ONE.simulator), r"parameters of Named are \['mass'\]"),
    "another order": (lambda: of_runs(Named("theta_2", "theta_1"), TWO.simulator), r"are \['theta_2', 'theta_1'\]"),
    "other designs": (lambda: of_runs(Named("g", designs=EPIDEMIC.designs), TOY), r"designs of Named are \['t_1'"),
    "failed rows": (
        lambda: posterior_gain(Failing(1), Failing(1), ONE.prior, n=64),
        r"\d+ of 64 experiments are NaN or infinite",
    ),
    "blocks": (
        lambda: see(reader(WORLD), experiments(WORLD, points(WORLD.prior, 8, 1), None, 1), torch.zeros(40, 1)),
        "others: 40 thetas, expected a multiple of 16",
    ),
    "runs of another length": (
        lambda: posterior_gain(Events(TOY, 5), Events(TOY, 8), TOY.prior, [50.0], n=8),
        r"x has shape .*expected \(\*, 5, 1\)",
    ),
}


@pytest.mark.parametrize(("call", "words"), REFUSED.values(), ids=REFUSED)
def test_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()


def test_who_knows_the_world_is_not_refused():
    same = Named("theta_1")
    assert of_runs(same, ONE.simulator) is same and of_runs(Named("g"), TOY).designs == ()
    flat = MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
    assert isinstance(roll(reader(TWO.simulator), TWO.simulator, flat, None, n=2, inner=47, seed=1), Rollouts)
    assert roll(reader(TWO.simulator), TWO.simulator, flat, None, n=2, inner=47, seed=1).inner == 32


MEMORY = """
import resource
from sbi_core import Events
from sbi_core.design import rollouts
from sbi_core.design.information import posterior_gain
from sbi_core.simulators import AsymmetryToy
toy = AsymmetryToy()
runs, before = Events(toy, 1000), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rollouts.AT_ONCE *= {factor}
posterior_gain(runs, runs, toy.prior, [48.0], n=200)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_thetas():
    """200 runs of 1000 events seen with 1024 thetas would be 1.6 GB; MB."""
    added = [
        float(subprocess.run([sys.executable, "-c", MEMORY.format(factor=k)], check=True, capture_output=True).stdout)
        for k in (1, 200)
    ]
    assert added[0] < 200 < added[1], "saboteur: all at once"
