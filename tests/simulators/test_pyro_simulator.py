import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from measures import z_of_mean
from pyro_programs import COUNTING, LIFETIME, MU, PROGRAMS, counting, gaussian, mixture
from torch.distributions import Distribution

from sbi_core import (
    Events,
    InputError,
    MissingGold,
    Parameter,
    SbiWarning,
    SimulatorError,
    StoreError,
    UniformPrior,
    check_gold,
    joint_log_ratio,
    joint_score,
    simulate,
)
from sbi_core.design.gradient import joint_design_score
from sbi_core.simulators import PyroSimulator

GAUSSIAN = PROGRAMS["gaussian"][0]


def run(simulator, n, seed=1, **options):
    designs = {"design": UniformPrior(simulator.designs)} if simulator.designs else {}
    return simulate(simulator, n, seed=seed, progress=False, **{**designs, **options})


def log_joint(simulator, rows, theta):
    return simulator.log_joint(theta, rows.x.double(), rows.z.double(), rows.design)


@pytest.mark.parametrize("name", PROGRAMS)
def test_log_joint_is_that_by_hand(name):
    """At the rows' own thetas and at others, with its slope."""
    simulator, by_hand = PROGRAMS[name]
    rows = run(simulator, 500)
    for theta in (rows.theta, rows.theta.roll(1, 0)):
        leaves = [theta.clone().requires_grad_() for _ in range(2)]
        value, exact = log_joint(simulator, rows, leaves[0]), by_hand(leaves[1], rows.x.double(), rows.z, rows.design)
        assert value.dtype == torch.float64
        assert torch.allclose(value, exact, rtol=1e-12, atol=1e-12)
        slope, its = (torch.autograd.grad(v.sum(), leaf)[0] for v, leaf in zip((value, exact), leaves, strict=True))
        assert torch.allclose(slope, its, rtol=1e-9, atol=1e-12)
        assert not torch.allclose(value, by_hand(theta + 1e-6, rows.x.double(), rows.z, rows.design), rtol=1e-12)


class Shifted(PyroSimulator):
    """Saboteur: gold of a theta that is a tenth of its range off."""

    def log_joint(self, theta, x, z, design):
        return super().log_joint(theta + 0.1 * torch.tensor([p.high - p.low for p in self.parameters]), x, z, design)


@pytest.mark.parametrize("name", ["gaussian", "decays", "mixture", "walk", "epidemic", "counting"])
def test_gold_passes(name):
    simulator = PROGRAMS[name][0]
    rows = run(simulator, 4000)
    check_gold(simulator, rows).raise_if_failed()
    shifted = Shifted(simulator.model, simulator.parameters, designs=simulator.designs)
    assert not check_gold(shifted, run(shifted, 4000)).passed


def test_score_does_not_go_through_the_draw():
    rows = run(GAUSSIAN, 20_000)
    t = joint_score(GAUSSIAN, rows)
    assert torch.allclose(t, (rows.z - rows.theta) / 4, atol=1e-12)
    phi = torch.cat([torch.ones(len(rows), 1), rows.x, rows.x**2], 1)
    exact = (rows.x - rows.theta) / 5
    assert z_of_mean((t - exact) * phi) < 4 < z_of_mean((t - 1.05 * exact) * phi)


def test_mean_joint_score_of_a_discrete_latent_is_the_score():
    simulator = PROGRAMS["mixture"][0]
    rows = run(simulator, 20_000)

    def score(mu_off):
        leaf = rows.theta.clone().requires_grad_()
        share, mu = leaf[:, 0], leaf[:, 1] + mu_off
        each = torch.stack(
            [share.log() - (rows.x[:, 0] - mu) ** 2 / 2, (1 - share).log() - (rows.x[:, 0] + mu) ** 2 / 2]
        )
        return torch.autograd.grad(each.logsumexp(0).sum(), leaf)[0]

    phi = torch.cat([torch.ones(len(rows), 1), rows.x, rows.x**2], 1)[:, :, None]
    t = joint_score(simulator, rows)[:, None]
    assert z_of_mean((t - score(0.0)[:, None]) * phi) < 4 < z_of_mean((t - score(0.1)[:, None]) * phi)


def test_plates_may_stand_anywhere():
    """The same columns for the five ways to write five decays."""
    names = [name for name in PROGRAMS if name.startswith("decays")]
    assert len(names) == 4
    for name in names:
        rows = run(PROGRAMS[name][0], 20)
        assert rows.x.shape == (20, 5) and rows.z.shape == (20, 5)
        assert z_of_mean(run(PROGRAMS[name][0], 4000).z / run(PROGRAMS[name][0], 4000).theta[:, :1], 1.0) < 4


def zoo(theta):
    """Events of other shapes than numbers, types other than floats."""
    a, b = theta.unbind(1)
    rows = len(theta)
    with pyro.plate("rows", rows):
        p = pyro.sample("p", dist.Dirichlet(torch.stack([a, b, a + b], 1)))
        k = pyro.sample("k", dist.Categorical(p))
        v = pyro.sample("v", dist.MultivariateNormal(torch.stack([a, b], 1), torch.eye(2).double()))
        r = pyro.sample("r", dist.LogNormal(v[:, 0] + k, b))
        m = pyro.sample("m", dist.Multinomial(7, p))
        g = pyro.sample("g", dist.Gamma(r.clamp(0.1, 5), b).mask(k > 0))
        pyro.sample("w", dist.TransformedDistribution(dist.Normal(a, 1.0), [dist.transforms.ExpTransform()]))
    matrix = pyro.sample("matrix", dist.Normal(a[:, None, None], torch.ones(2, 3)).to_event(2))
    pyro.sample("count", dist.Poisson(b + torch.where(k > 0, g, 0.0)))
    pyro.sample("x", dist.Normal(matrix + m.sum(-1)[:, None, None], 1.0).to_event(2))


def test_log_joint_is_that_of_pyro():
    """Row by row, its own trace gives the same sum."""
    simulator = PyroSimulator(zoo, [Parameter("a", 0.5, 2), Parameter("b", 0.5, 2)], observed=("count", "x"))
    rows = run(simulator, 30)
    layout = simulator.check()
    assert rows.z.shape == (30, 3 + 1 + 2 + 1 + 3 + 1 + 1 + 6) and rows.x.shape == (30, 7)
    values = layout.values(rows.x.double(), rows.z)
    assert values["k"].dtype == torch.int64 and values["matrix"].shape == (30, 2, 3)
    found = log_joint(simulator, rows, rows.theta.roll(1, 0))
    for row in range(30):
        given = {name: value[row : row + 1] for name, value in values.items()}
        conditioned = pyro.poutine.condition(zoo, given)
        trace = pyro.poutine.trace(conditioned).get_trace(rows.theta.roll(1, 0)[row : row + 1])
        assert float(found[row]) == pytest.approx(float(trace.log_prob_sum()), rel=1e-10)
    check_gold(simulator, run(simulator, 3000)).raise_if_failed()


def test_a_row_alone_is_a_row():
    simulator, rows = PROGRAMS["walk"][0], run(PROGRAMS["walk"][0], 20)
    together = log_joint(simulator, rows, rows.theta)
    alone = torch.cat([log_joint(simulator, rows[k], rows[k].theta) for k in range(20)])
    assert torch.allclose(together, alone, rtol=1e-13)
    assert log_joint(simulator, rows[:0], rows[:0].theta).shape == (0,)


def test_columns_are_not_changed_by_a_program_that_writes_over_its_draws():
    simulator, rows = PROGRAMS["epidemic"][0], run(PROGRAMS["epidemic"][0], 20)
    before = {name: column.clone() for name, column in rows.columns().items()}
    log_joint(simulator, rows, rows.theta)
    assert all(torch.equal(column, before[name]) for name, column in rows.columns().items())
    assert rows.z.max() < 30, "what was drawn, and not what was made of it"


def test_theta_is_not_changed_by_a_program_that_writes_over_it():
    def doubling(theta):
        theta *= 2
        pyro.sample("x", dist.Normal(theta[:, 0], 1.0))

    simulator = PyroSimulator(doubling, [MU])
    rows = run(simulator, 20)
    theta, leaf = rows.theta.clone(), rows.theta.clone().requires_grad_()
    slope = torch.autograd.grad(simulator.log_joint(leaf, rows.x, None, None).sum(), leaf)[0]
    simulator.log_joint(rows.theta, rows.x, None, None)
    assert torch.allclose(slope, 2 * (rows.x - 2 * theta)) and torch.equal(rows.theta, theta)


def test_failed_rows_are_nan():
    rows = run(GAUSSIAN, 6)
    whole = log_joint(GAUSSIAN, rows, rows.theta)
    rows.x[1], rows.z[4] = torch.nan, torch.nan
    value = log_joint(GAUSSIAN, rows, rows.theta)
    assert value.isnan().tolist() == [False, True, False, False, True, False]
    assert torch.equal(value[[0, 2, 3, 5]], whole[[0, 2, 3, 5]])


def test_columns_that_do_not_fit_are_refused():
    rows = run(GAUSSIAN, 6)
    with pytest.raises(MissingGold, match="stored without z"):
        GAUSSIAN.log_joint(rows.theta, rows.x, None, None)
    with pytest.raises(InputError, match=r"z has 2 numbers a row, expected 1 for the sites \['z'\]"):
        GAUSSIAN.log_joint(rows.theta, rows.x, rows.z.expand(-1, 2), None)
    with pytest.raises(InputError, match=r"x has 3 numbers a row, expected 1 for the sites \['x'\]"):
        GAUSSIAN.log_joint(rows.theta, rows.x.expand(-1, 3), rows.z, None)


def single(theta):
    z = pyro.sample("z", dist.Normal(torch.zeros(len(theta)), 1.0))
    n = pyro.sample("n", dist.Poisson(z.exp()))
    pyro.sample("x", dist.Normal(z + n + theta[:, 0], 1.0))


def test_types_are_kept():
    """float32 where all sites are, float64 otherwise; z gives every value back, bit by bit."""
    rows = run(PyroSimulator(single, [MU], observed="z"), 10)
    assert rows.x.dtype == torch.float32 and rows.z.dtype == torch.float64
    rows = run(PyroSimulator(single, [MU]), 10)
    assert rows.z.dtype == torch.float32 and torch.equal(rows.z[:, 1], rows.z[:, 1].round())
    labels = run(PyroSimulator(mixture, PROGRAMS["mixture"][0].parameters, observed="which", categories=2), 10)
    assert labels.x.dtype == torch.float64 and labels.x.shape == (10, 1) and set(labels.x.flatten().tolist()) == {0, 1}


def rounded(theta):
    z = pyro.sample("z", dist.Normal(theta[:, 0].float(), 1.0))
    pyro.sample("x", dist.Normal(z, 1.0))


def test_gold_in_single_precision_is_warned_of():
    with pytest.warns(SbiWarning, match=r"the sites \['z'\] have densities in single precision"):
        PyroSimulator(rounded, [MU]).check()


def test_rows_depend_on_the_seed_alone():
    """Not on workers, to which a program goes with what it closes over, nor on what was drawn or checked before."""
    width = torch.tensor(2.0).double()

    def model(theta):
        noisy = dist.Normal(pyro.sample("z", dist.Normal(theta[:, 0], width)), 1.0)
        pyro.sample("x", noisy)

    rows = run(PyroSimulator(model, [MU], rows_per_seed=10), 60, chunk_rows=10)
    torch.manual_seed(5)
    fresh = PyroSimulator(model, [MU], rows_per_seed=10)
    fresh.check()
    for other in (run(fresh, 60), run(fresh, 60, chunk_rows=10, workers=2)):
        assert torch.equal(rows.x, other.x) and torch.equal(rows.z, other.z)
    assert not torch.equal(rows.x, run(fresh, 60, seed=2).x)
    theta = rows.theta[:5]
    drawn = [GAUSSIAN.sample(theta, None, torch.Generator().manual_seed(k))[0] for k in (3, 3, 4)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_global_state_is_left_alone():
    Distribution.set_default_validate_args(False)
    try:
        before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
        simulator = PyroSimulator(gaussian, [MU])
        x, z = simulator.sample(torch.zeros(3, 1).double(), None, torch.Generator())
        simulator.log_joint(torch.zeros(3, 1).double(), x, z, None)
        with pytest.raises(SimulatorError):
            PyroSimulator(lambda theta: pyro.param("p", theta), [MU]).check()
        assert torch.equal(before[0], torch.get_rng_state()) and before[2] == random.getstate()
        assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002
        assert Distribution._validate_args is False
        assert len(pyro.get_param_store()) == 0
        assert not pyro.poutine.runtime.am_i_wrapped() and pyro.poutine.runtime._DIM_ALLOCATOR._stack == []
    finally:
        Distribution.set_default_validate_args(True)


def test_arguments_are_validated_while_drawing():
    simulator = PyroSimulator(gaussian, [MU])

    def bad(theta):
        pyro.sample("x", dist.Normal(0.0, theta[:, 0]))

    with pytest.raises(
        SimulatorError, match=r"'PyroSimulator\(bad\)': the program raised ValueError for theta \(50, 1\)"
    ):
        PyroSimulator(bad, [MU]).check()
    theta = torch.full((4, 1), -50.0).double()
    assert simulator.log_joint(theta, theta, theta, None).isfinite().all(), "theta beyond the prior is no error"


def test_several_events_are_one_row():
    world = Events(GAUSSIAN, 3)
    runs = run(world, 200)
    each = GAUSSIAN.log_joint(
        runs.theta.repeat_interleave(3, 0), runs.x.reshape(-1, 1), runs.z[..., :1].reshape(-1, 1), None
    )
    assert torch.allclose(world.log_joint(runs.theta, runs.x, runs.z, None), each.reshape(200, 3).sum(1), rtol=1e-12)


def test_designs_are_needed_unless_the_program_has_one():
    simulator = PyroSimulator(counting, **COUNTING)
    with pytest.raises(InputError, match=r"has designs \['time', 'share'\]: give simulate\(design=...\)"):
        simulate(simulator, 10, progress=False)

    def with_own(theta, design=torch.tensor([[2.0, 0.5]])):  # noqa: B008
        counting(theta, design.expand(len(theta), 2))

    own = PyroSimulator(with_own, **COUNTING)
    rows, told = simulate(own, 50, seed=1, progress=False), run(own, 50, design=torch.tensor([2.0, 0.5]))
    assert rows.design is None and torch.equal(rows.z, told.z)
    ratio = joint_log_ratio(own, rows, [2.0, 0.6], [3.0, 0.6])
    assert torch.allclose(ratio, joint_log_ratio(own, told, [2.0, 0.6], [3.0, 0.6]), rtol=1e-12)


def test_design_scores():
    """Of the time: n / time - (signal + background)."""
    simulator = PyroSimulator(counting, **COUNTING, design_score=True)
    rows = run(simulator, 5000)
    score = joint_design_score(simulator, rows)
    exact = rows.z[:, 0] / rows.design[:, 0] - rows.theta.sum(1)
    assert torch.allclose(score[:, 0], exact, rtol=1e-9, atol=1e-9)
    assert z_of_mean(score) < 4 < z_of_mean(score + 0.1 * score.std(0))
    with pytest.raises(MissingGold, match="does not state design_score"):
        joint_design_score(PyroSimulator(counting, **COUNTING), rows)


@pytest.mark.parametrize("design", [None, torch.tensor([2.0])])
def test_design_scores_need_a_fixed_support(design):
    def limited(theta, design):
        z = pyro.sample("z", dist.Uniform(0.0, design[:, 0]))
        pyro.sample("x", dist.Normal(z + theta[:, 0], 1.0))

    options = {"designs": (Parameter("reach", 1, 2),)}
    with pytest.raises(SimulatorError, match="site 'z': its support moves with the design"):
        PyroSimulator(limited, [MU], **options, design_score=True).check(design)
    PyroSimulator(limited, [MU], **options).check(design)


def helper(theta):
    return theta[:, 0]


def helped(theta):
    pyro.sample("x", dist.Normal(helper(theta), 1.0))


def with_scale(scale):
    def model(theta):
        pyro.sample("x", dist.Normal(theta[:, 0], scale))

    return model


class Network(torch.nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1, bias=False).double()
        torch.nn.init.constant_(self.layer.weight, weight)

    def forward(self, theta):
        pyro.sample("x", dist.Normal(self.layer(theta)[:, 0], 1.0))


class Callable:
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, theta):
        pyro.sample("x", dist.Normal(theta[:, 0], self.scale))


def test_a_store_belongs_to_one_program(tmp_path, monkeypatch):
    """The same source with another constant inside, or another function that it calls, is another program."""
    models = [
        gaussian,
        helped,
        with_scale(1.0),
        with_scale(2.0),
        Network(1.0),
        Network(2.0),
        Callable(1.0),
        Callable(2.0),
    ]
    models.append(Callable(3.0).__call__)
    prints = [PyroSimulator(model, [MU]).settings["model"] for model in models]
    assert len(set(prints)) == len(prints)
    noise = dist.Bernoulli(torch.tensor(0.3))
    same = PyroSimulator(with_scale(noise), [MU])
    before = same.settings
    noise.log_prob(torch.ones(()))  # which leaves its logits in it
    assert same.settings == before != PyroSimulator(with_scale(dist.Bernoulli(torch.tensor(0.4))), [MU]).settings
    again = [with_scale(1.0), Network(1.0), Callable(1.0)]
    assert [PyroSimulator(model, [MU]).settings["model"] for model in again] == [prints[2], prints[4], prints[6]]
    assert PyroSimulator(gaussian, [MU], rows_per_seed=5).settings != GAUSSIAN.settings
    simulate(PyroSimulator(helped, [MU]), 10, seed=1, store=tmp_path / "s", progress=False)
    simulate(PyroSimulator(helped, [MU]), 20, seed=1, store=tmp_path / "s", progress=False)
    monkeypatch.setitem(globals(), "helper", lambda theta: theta[:, 0] + 1)
    with pytest.raises(StoreError, match="belongs to another campaign"):
        simulate(PyroSimulator(helped, [MU]), 30, seed=1, store=tmp_path / "s", progress=False)


def test_programs_without_source_are_told_apart():
    made = []
    for scale in ("1.0", "2.0"):
        names = {"pyro": pyro, "dist": dist}
        exec(f"def model(theta):\n    pyro.sample('x', dist.Normal(theta[:, 0], {scale}))", names)
        made.append(PyroSimulator(names["model"], [MU]).settings["model"])
    assert made[0] != made[1] and all(name.startswith("model:") for name in made)


def test_objects_are_programs_too():
    for model in (Network(1.0), Callable(1.0)):
        simulator = PyroSimulator(model, [MU])
        rows = run(simulator, 40)
        assert rows.z is None and simulator.name == f"PyroSimulator({type(model).__name__})"
        assert torch.allclose(joint_score(simulator, rows), rows.x - rows.theta, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": 3}, "model is int, expected a function"),
        ({"model": lambda: None}, r"model takes \(\), expected \(theta\)"),
        ({"model": gaussian, "designs": LIFETIME}, r"model takes \(theta\), expected \(theta, design\) as designs are"),
        ({"model": counting}, r"model takes \(theta, design\), expected \(theta\)"),
        ({"model": gaussian, "observed": ("x", "x")}, r"observed = \('x', 'x'\), expected the name of a site"),
        ({"model": gaussian, "observed": ()}, r"observed = \(\), expected the name of a site"),
        ({"model": gaussian, "contrasts": 3}, "contrasts = 3: a vectorised program keeps its latents"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        PyroSimulator(**{"parameters": [MU], **options})
