"""Programs whose gold would be wrong are refused, each beside the nearest one that is right."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.reparam import LocScaleReparam
from pyro_programs import gaussian

from sbi_core import Parameter, SbiWarning, SimulatorError, check_gold, joint_score, simulate
from sbi_core.simulators import PyroSimulator

TAU = Parameter("tau", 0.5, 2)
BIASED = Parameter("bias", 0.1, 0.9)


def noisy(z):
    pyro.sample("x", dist.Normal(z, 1.0))


def moving_end(theta):
    noisy(pyro.sample("z", dist.Uniform(0.0, theta[:, 0])))


def moving_end_a_little(theta):
    noisy(pyro.sample("z", dist.Uniform(0.0, 1 + 1e-9 * theta[:, 0])))


def moving_start(theta):
    """Exponential above theta: the support that it states is the whole line."""
    shift = dist.transforms.AffineTransform(theta[:, 0], 1.0)
    noisy(pyro.sample("z", dist.TransformedDistribution(dist.Exponential(torch.ones(len(theta))), [shift])))


def moving_log_normal(theta):
    """log p beyond the end is not a number."""
    base = dist.Normal(torch.zeros(len(theta)).double(), 1.0)
    moves = [dist.transforms.ExpTransform(), dist.transforms.AffineTransform(theta[:, 0], 1.0)]
    noisy(pyro.sample("z", dist.TransformedDistribution(base, moves)))


def moving_mixture(theta):
    """An end in the middle, which no support states."""
    share = dist.Categorical(torch.tensor([0.5, 0.5]).double().expand(len(theta), 2))
    ends = torch.stack([theta[:, 0], theta[:, 0] + 1], 1)
    parts = dist.Uniform(torch.zeros_like(ends), ends, validate_args=False)
    noisy(pyro.sample("z", dist.MixtureSameFamily(share, parts, validate_args=False)))


class Beyond(dist.TorchDistribution):
    """Exponential beyond a number, which says that it may be anything."""

    arg_constraints = {}  # noqa: RUF012
    support = dist.constraints.real

    def __init__(self, start):
        self.start = start
        super().__init__(start.shape)

    def sample(self, sample_shape=()):
        return self.start.detach() + torch.empty_like(self.start).exponential_()

    def log_prob(self, value):
        return torch.where(value < self.start, -torch.inf, self.start - value)


def moving_unsaid(theta):
    noisy(pyro.sample("z", Beyond(theta[:, 0])))


def moving_count(theta):
    noisy(pyro.sample("z", dist.Binomial(theta[:, 0].mul(4).floor(), 0.5)))


def moving_observed(theta):
    z = pyro.sample("z", dist.Normal(theta[:, 0], 1.0))
    pyro.sample("x", dist.Uniform(z, z + theta[:, 0]))


def moving_masked(theta):
    z = pyro.sample("z", dist.Normal(torch.zeros(len(theta)).double(), 1.0))
    y = pyro.sample("y", dist.Normal(theta[:, 0], 1.0).mask(theta[:, 0] + z > 1))
    noisy(torch.where(theta[:, 0] + z > 1, y, 0.0))


def fixed_support(theta):
    """What the moving ones should be: ends that draws move are fine, and so are masked ones."""
    u = pyro.sample("u", dist.Uniform(torch.zeros(len(theta)).double(), 1.0))
    v = pyro.sample("v", dist.Uniform(-u, 1 + u))
    n = pyro.sample("n", dist.Poisson(theta[:, 0]))
    m = pyro.sample("m", dist.Binomial(n, 0.5 * torch.sigmoid(theta[:, 0])))
    pyro.sample("w", dist.Uniform(0.0, theta[:, 0]).mask(torch.zeros(len(theta)) > 0))
    noisy(u * theta[:, 0] + v + m)


def far(theta):
    """log p falls below all numbers on the way to other thetas, and nothing breaks off."""
    noisy(pyro.sample("z", dist.Exponential(torch.exp(700 * theta[:, 0]))).log())


def delta(theta):
    noisy(pyro.sample("y", dist.Delta(theta[:, 0])))


def delta_of_a_draw(theta):
    z = pyro.sample("z", dist.Normal(theta, 1.0).to_event(1))
    noisy(pyro.sample("y", dist.Delta(z, event_dim=1))[:, 0])


def delta_observed(theta):
    pyro.sample("x", dist.Delta(pyro.sample("z", dist.Normal(theta[:, 0], 1.0))))


def computed(theta):
    z = pyro.sample("z", dist.Normal(theta[:, 0], 1.0))
    pyro.deterministic("x", z + theta[:, 0])


def computed_from_draws(theta):
    z = pyro.sample("z", dist.Normal(theta[:, 0], 1.0))
    y = pyro.deterministic("y", z + theta[:, 0])
    w = pyro.sample("w", dist.Normal(y, 1.0))
    pyro.deterministic("x", torch.stack([z * w, w], 1))


def no_x(theta):
    pyro.sample("X", dist.Normal(theta[:, 0], 1.0))


def observed_already(theta):
    pyro.sample("y", dist.Normal(theta[:, 0], 1.0), obs=torch.zeros(len(theta)))
    noisy(theta[:, 0])


def counted_vectors(theta):
    """Its support states a bound for each row, beside vectors."""
    z = pyro.sample("z", dist.DirichletMultinomial(theta[:, :1].expand(-1, 3), total_count=5))
    noisy(z[:, 0].double())


def factor(theta):
    pyro.factor("penalty", -theta[:, 0])
    noisy(theta[:, 0])


def scaled(theta):
    with pyro.poutine.scale(scale=2.0):
        noisy(theta[:, 0])


def trained(theta):
    noisy(theta[:, 0] * pyro.param("weight", torch.ones(())))


def subsampled(theta):
    with pyro.plate("data", 10, subsample_size=3, dim=-2):
        noisy(theta[:, 0])


def twice(theta):
    for _ in range(2):
        noisy(theta[:, 0])


def of_torch(theta):
    pyro.sample("x", torch.distributions.Normal(theta[:, 0], 1.0))


def hidden_torch(theta):
    noisy(theta[:, 0] + torch.randn(len(theta)))


def hidden_numpy(theta):
    z = pyro.sample("z", dist.Normal(theta[:, 0], 1.0))
    pyro.deterministic("x", z + torch.from_numpy(np.random.default_rng().normal(size=len(theta))))


def hidden_under_block(theta):
    with pyro.poutine.block():
        z = pyro.sample("z", dist.Normal(theta[:, 0], 2.0))
    noisy(z)


def masked_but_used(theta):
    z = pyro.sample("z", dist.Normal(theta[:, 0], 1.0))
    y = pyro.sample("y", dist.Normal(theta[:, 0], 1.0).mask(z > 1))
    noisy(z + y)


def masked_but_used_in_x(theta):
    z = pyro.sample("z", dist.Normal(theta[:, 0], 1.0))
    with pyro.poutine.mask(mask=z > 1):
        y = pyro.sample("y", dist.Normal(theta[:, 0], 1.0))
    pyro.deterministic("x", z + y)


def masked_and_unused(theta):
    """Where it is masked, 0 has no density: log p of it, or its slope, would be infinite."""
    z = pyro.sample("z", dist.Normal(theta[:, 0], 1.0))
    with pyro.poutine.mask(mask=z > 1):
        y = pyro.sample("y", dist.LogNormal(theta[:, 0], 1.0))
        g = pyro.sample("g", dist.Gamma(theta[:, 0], 1.0))
    noisy(z + torch.where(z > 1, y * g, 0.0))


def masked_without_slope(theta):
    z = pyro.sample("z", dist.Bernoulli(0.5 * theta[:, 0] / 2))
    y = pyro.sample("y", dist.Normal(torch.sqrt(z * theta[:, 0]), 1.0).mask(z > 0))
    noisy(torch.where(z > 0, y, 0.0))


def changed_in_place(theta):
    """What log p was computed with is written over before its slope is."""
    n = torch.full((len(theta),), 5.0).double()
    k = pyro.sample("k", dist.Binomial(n, theta[:, 0] / 3))
    n -= k
    noisy(n)


def padded(theta):
    """x has room for eight, of which some are there; 0 is no value that it may have."""
    n = pyro.sample("n", dist.Poisson(theta[:, 0]))
    with pyro.poutine.mask(mask=torch.arange(8) < n[:, None]):
        pyro.sample("x", dist.LogNormal(theta[:, :1], 1.0).expand([len(theta), 8]))


def failing(theta):
    """Some rows fail, and say so."""
    z = pyro.sample("z", dist.Normal(theta[:, 0], 1.0))
    pyro.deterministic("x", torch.where(z > 2, torch.nan, z))


def all_failing(theta):
    z = pyro.sample("z", dist.Normal(theta[:, 0], 1.0))
    pyro.deterministic("x", z * torch.nan)


def reparametrised(theta):
    """x ~ N(z, 1), z = theta + 2 u, u ~ N(0, 1)."""
    centred = {"z": LocScaleReparam(0.0)}
    with pyro.poutine.reparam(config=centred):
        noisy(pyro.sample("z", dist.Normal(theta[:, 0], 2.0)))


def shared(theta):
    noisy(theta[:, 0] + pyro.sample("z", dist.Normal(0.0, 1.0)))


def crossed(theta):
    noisy(pyro.sample("z", dist.Normal(theta, 1.0)) + theta[:, 0])


def summed_rows(theta):
    pyro.sample("x", dist.Normal(theta[:, 0], 1.0).to_event(1))


def joined(theta):
    noisy(torch.cat([theta[:, 0], theta[:, 0]]))


def neighbours(theta):
    noisy(theta[:, 0] - theta[:, 0].mean())


def neighbours_of_draws(theta):
    z = pyro.sample("z", dist.Normal(theta[:, 0], 1.0))
    pyro.deterministic("x", z.cumsum(0))


def squeezed(theta):
    a = theta.squeeze()
    z = pyro.sample("z", dist.Normal(a, 1.0).expand([a.shape[0]]))
    noisy(z)


def one_row(theta):
    noisy(theta[0])


def branching(theta):
    z = pyro.sample("z", dist.Normal(theta[:, 0], 1.0))
    noisy(z if z > 0 else -z)


def growing(theta):
    for k in range(len(theta) // 10):
        pyro.sample(f"z_{k}", dist.Normal(theta[:, 0], 1.0))
    noisy(theta[:, 0])


def choosing_sites(theta):
    name = "a" if theta[0, 0] > 1 else "b"
    noisy(pyro.sample(name, dist.Normal(theta[:, 0], 1.0)))


def detached(theta):
    noisy(theta[:, 0].detach())


def half_detached(theta):
    noisy(theta[:, 0] * theta[:, 0].detach())


def stepped(theta):
    noisy(theta[:, 0].mul(4).round())


def single_beside_detached(theta):
    """A site in single precision must not hide another's lost gradient."""
    z = pyro.sample("z", dist.Normal(theta[:, 0].float(), 1.0))
    noisy(z.double() + theta[:, 0] * theta[:, 0].detach())


def half_detached_single(theta):
    a = theta[:, 0].float()
    noisy(a * a.detach())


def stepped_beside_another(theta):
    noisy(pyro.sample("z", dist.Normal(theta[:, 0], 1.0)) + theta[:, 0].mul(4).round())


def straight_through(theta):
    noisy(pyro.sample("z", dist.RelaxedBernoulliStraightThrough(torch.tensor(0.5).double(), logits=theta[:, 0])))


def asserting(theta):
    assert len(theta) < 60
    noisy(theta[:, 0])


def outside(theta):
    pyro.sample("x", dist.Bernoulli(1.5 * theta[:, 0]))


ROW_BY_ROW = "vectorized=False"
MOVES = "site 'z': its support moves with theta"
REFUSED = [
    (moving_end, TAU, MOVES),
    (moving_end_a_little, TAU, MOVES),
    (moving_start, TAU, MOVES),
    (moving_log_normal, TAU, MOVES),
    (moving_mixture, TAU, MOVES),
    (moving_unsaid, TAU, MOVES),
    (moving_count, TAU, MOVES),
    (moving_observed, TAU, "site 'x': its support moves with theta"),
    (moving_masked, TAU, "site 'y': its mask moves with theta"),
    (delta, TAU, "site 'y' is a Delta"),
    (delta_of_a_draw, TAU, "site 'y' is a Delta"),
    (delta_observed, TAU, "site 'x' is a Delta"),
    (computed, TAU, "site 'x' is computed, and moves with theta"),
    (no_x, TAU, "there is no site 'x' to observe; Known: X"),
    (observed_already, TAU, "site 'y' has obs="),
    (factor, TAU, "pyro.factor 'penalty' leaves log p without its norm"),
    (scaled, TAU, "site 'x' has its log p scaled"),
    (trained, TAU, "pyro.param 'weight'"),
    (subsampled, TAU, "plate 'data' takes a subsample of 3 of 10"),
    (twice, TAU, "site 'x' is there twice"),
    (of_torch, TAU, "site 'x' draws from Normal, expected one of pyro.distributions"),
    (hidden_torch, TAU, "site 'x' depends on random numbers that no pyro.sample draws"),
    (hidden_numpy, TAU, "site 'x' depends on random numbers that no pyro.sample draws"),
    (
        hidden_under_block,
        TAU,
        "site 'x' depends on random numbers that no pyro.sample draws, or one under poutine.block",
    ),
    (masked_but_used, TAU, r"masked draws of the sites \['y'\] are used"),
    (masked_but_used_in_x, TAU, r"masked draws of the sites \['y'\] are used"),
    (masked_without_slope, TAU, r"its gradient is not, at the sites \['y'\]"),
    (changed_in_place, TAU, "a tensor is changed in place. Let it take a new name instead, as in n = n - k"),
    (all_failing, TAU, "x is finite in 0 of 64 rows"),
    (shared, TAU, "site 'z' has shape .* all rows share one draw.*" + ROW_BY_ROW),
    (crossed, TAU, r"site 'x' has shape \(50, 50\) .* one axis as long as theta.*" + ROW_BY_ROW),
    (summed_rows, TAU, "one log p for several rows"),
    (joined, TAU, r"site 'x' has shape \(100,\)"),
    (neighbours, TAU, "site 'x': a row depends on which other rows are there"),
    (neighbours_of_draws, TAU, "site 'x': a row depends on which other rows are there"),
    (squeezed, TAU, "the program raised IndexError for 1 of 64 rows"),
    (one_row, TAU, "site 'x' has shape .* all rows share one draw.*" + ROW_BY_ROW),
    (branching, TAU, "the program raised RuntimeError .*" + ROW_BY_ROW),
    (growing, TAU, r"site 'z_5' has shape \(64,\) in a run of 64 rows, expected None.*" + ROW_BY_ROW),
    (choosing_sites, TAU, "is there at one theta and not at another"),
    (detached, TAU, "log p changes with 'tau', but its gradient does not say so"),
    (half_detached, TAU, "log p changes with 'tau', but its gradient does not say so"),
    (stepped, TAU, "log p changes with 'tau', but its gradient does not say so"),
    (single_beside_detached, TAU, "site 'x': log p changes with 'tau', but its gradient does not say so"),
    (half_detached_single, TAU, "site 'x': log p changes with 'tau', but its gradient does not say so"),
    (stepped_beside_another, TAU, "site 'x': log p changes with 'tau', but its gradient does not say so"),
    (straight_through, TAU, "site 'z' draws from RelaxedBernoulliStraightThrough, which rounds its value"),
    (asserting, TAU, r"raised AssertionError for theta \(64, 1\): (assert|it says no more)"),
    (outside, BIASED, "the program raised ValueError .* Let it take arguments that the distribution allows"),
]


@pytest.mark.parametrize(("program", "parameter", "words"), REFUSED, ids=lambda value: getattr(value, "__name__", ""))
def test_refused(program, parameter, words):
    simulator = PyroSimulator(program, [parameter])
    with pytest.raises(SimulatorError, match=words) as caught:
        simulator.check()
    assert str(caught.value).startswith(f"simulator 'PyroSimulator({program.__name__})': ")
    assert str(caught.value).count("simulator '") == 1
    with pytest.raises(SimulatorError, match=words):
        simulate(simulator, 10, seed=1, progress=False)
    assert len(pyro.get_param_store()) == 0


@pytest.mark.parametrize(
    "program",
    [gaussian, fixed_support, computed_from_draws, counted_vectors, masked_and_unused, padded, failing, reparametrised],
)
def test_not_refused(program):
    simulator = PyroSimulator(program, [TAU])
    assert simulator.check() is not None
    rows = simulate(simulator, 4000, seed=1, progress=False)
    assert bool(rows.valid.all()) == (program is not failing)
    if program is failing:  # what is left is another experiment: z below 2
        assert simulator.log_joint(rows.theta, rows.x, rows.z, None).isfinite().equal(rows.valid)
    else:
        check_gold(simulator, rows).raise_if_failed()


def test_masked_draws_are_not_told():
    """They know theta, and log p does not count them: in z and x stands one fixed number instead."""
    rows = simulate(PyroSimulator(padded, [TAU]), 200, seed=1, progress=False)
    there = torch.arange(8) < rows.z
    assert there.any() and not there.all()
    assert all(len(rows.x[~there[:, k], k].unique()) <= 1 < len(rows.x[there[:, k], k].unique()) for k in range(3))
    rows = simulate(PyroSimulator(masked_and_unused, [TAU]), 200, seed=1, progress=False)
    assert len(rows.z[rows.z[:, 0] <= 1][:, 1:].unique(dim=0)) == 1


def test_what_stands_in_place_of_masked_draws_does_not_depend_on_the_trial():
    """Nor on the first design, which the trial is made at: rows belong to their seed alone."""

    def lognormal(theta, design):
        z = pyro.sample("z", dist.Normal(theta[:, 0], 1.0))
        y = pyro.sample("y", dist.LogNormal(design[:, 0], 1.0).mask(z > 1))
        noisy(torch.where(z > 1, y.log(), z))

    rows = []
    for first in (0.0, 5.0):
        simulator = PyroSimulator(lognormal, [TAU], designs=[Parameter("level", 0, 5)])
        simulator.check(torch.tensor([first]))
        rows.append(simulate(simulator, 50, design=torch.tensor([2.0]), seed=1, progress=False))
    assert torch.equal(rows[0].z, rows[1].z) and (rows[0].z[:, 1] == 0).equal(rows[0].z[:, 0] <= 1)
    score = joint_score(simulator, rows[0])
    assert torch.allclose(score, rows[0].z[:, :1] - rows[0].theta), "and gold is finite, of z alone"


MASKED = {
    "mixture": lambda a: dist.MixtureSameFamily(
        dist.Categorical(torch.ones(len(a), 2).double()), dist.LogNormal(a[:, None].expand(-1, 2), 1.0)
    ),
    "shifted": lambda a: dist.TransformedDistribution(
        dist.Exponential(torch.ones_like(a)),
        [dist.transforms.AffineTransform(3.0, 2.0), dist.transforms.ExpTransform()],
    ),
    "dirichlet": lambda a: dist.Dirichlet(a[:, None].expand(-1, 3)),
    "correlation": lambda a: dist.LKJCholesky(3, a),
    "interval": lambda a: dist.Uniform(a.detach() * 0 + 1, 2.0),
    "events": lambda a: dist.Gamma(a[:, None], 1.0).expand([len(a), 2]).to_event(1),
    "von mises": lambda a: dist.VonMises(a, 1.0),
    "count": lambda a: dist.Binomial(5, torch.sigmoid(a)),
    "classes": lambda a: dist.OneHotCategorical(torch.stack([a, a, a], 1).softmax(1)),
}


@pytest.mark.parametrize("name", MASKED)
def test_slopes_are_finite_where_draws_are_masked(name):
    """Whatever is masked: 0 is stored, and a value that is possible stands in its place when log p is replayed."""

    def program(theta):
        z = pyro.sample("z", dist.Normal(theta[:, 0], 1.0))
        with pyro.poutine.mask(mask=z > 1):
            pyro.sample("y", MASKED[name](theta[:, 0]))
        noisy(z)

    simulator = PyroSimulator(program, [TAU])
    rows = simulate(simulator, 100, seed=1, progress=False)
    score, masked = joint_score(simulator, rows), rows.z[:, 0] <= 1
    assert not rows.z[masked][:, 1:].any() and rows.z[~masked][:, 1:].any()
    assert torch.allclose(score[masked], (rows.z[:, :1] - rows.theta)[masked])


def test_log_p_that_fades_is_not_refused():
    simulator = PyroSimulator(far, [Parameter("a", -1, 1)])
    simulator.check()
    rows = simulate(simulator, 200, seed=1, progress=False)
    other = simulator.log_joint(rows.theta.roll(1, 0), rows.x.double(), rows.z.double(), None)
    assert other.isneginf().any(), "saboteur: log p does end, and is not refused for it"


def test_a_draw_that_rounds_to_the_end_of_its_support_says_so():
    def tiny(theta):
        noisy(pyro.sample("z", dist.LogNormal(theta[:, 0] - 760, 1.0)))

    with pytest.raises(SimulatorError, match="site 'z': log p is nan at what was drawn itself"):
        PyroSimulator(tiny, [TAU]).check()


def test_not_a_number_at_its_own_draw():
    def lost(theta):
        noisy(pyro.sample("z", dist.Normal(theta[:, 0], 0.0, validate_args=False)))

    with pytest.raises(SimulatorError, match="site 'z': log p is nan at what was drawn itself, theta = "):
        PyroSimulator(lost, [TAU]).check()


def test_whole_numbers_as_parameters_need_no_slope():
    def levels(theta):
        noisy(torch.tensor([0.0, 2.0, 5.0]).double()[theta[:, 0].long()] * theta[:, 1])

    axes = [Parameter("level", 0, 2, integer=True), TAU]
    PyroSimulator(levels, axes).check()
    with pytest.raises(SimulatorError, match="log p changes with 'level'"):
        PyroSimulator(levels, [Parameter("level", 0, 2), TAU]).check()


def test_enumeration_is_only_a_remark():
    """Marks for inference change nothing: every site is drawn."""

    @pyro.infer.config_enumerate
    def marked(theta):
        which = pyro.sample("which", dist.Bernoulli(theta[:, 0] / 3), infer={"enumerate": "parallel"})
        noisy(which)

    simulator = PyroSimulator(marked, [TAU])
    rows = simulate(simulator, 100, seed=1, progress=False)
    assert set(rows.z.flatten().tolist()) == {0.0, 1.0}


def test_refusals_come_with_the_design_that_causes_them():
    """Checked at the first designs asked for, as others may not be possible."""

    def ordered(theta, design):
        if bool((design.diff(dim=1) < 0).any()):
            raise ValueError("times must be in order")
        noisy(theta[:, 0] * design[:, 1])

    simulator = PyroSimulator(ordered, [TAU], designs=[Parameter("t_1", 0, 1), Parameter("t_2", 0, 1)])
    with pytest.raises(SimulatorError, match=r"the program raised ValueError .*: times must be in order"):
        simulator.check()
    assert simulator.check(torch.tensor([0.2, 0.4])) is not None
    simulate(simulator, 10, design=torch.tensor([0.3, 0.4]), seed=1, progress=False)


def test_no_warning_is_given_to_what_is_right(recwarn):
    simulate(PyroSimulator(gaussian, [TAU]), 10, seed=1, progress=False)
    assert not [w for w in recwarn if issubclass(w.category, SbiWarning)]
