"""Programs that take one row at a time: their gold is stored with the rows."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from measures import z_of_mean
from pyro_programs import MU, gaussian, ragged, ragged_by_hand

from sbi_core import (
    Events,
    InputError,
    MissingGold,
    Parameter,
    SbiWarning,
    SimulatorError,
    check_gold,
    joint_score,
    simulate,
)
from sbi_core.simulators import PyroSimulator

AXES = (Parameter("bias", -1, 1), Parameter("step", 0.5, 1))


def run(simulator, n, seed=1, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SbiWarning)
        return simulate(simulator, n, seed=seed, progress=False, **options)


def telling(theta):
    """The same as `ragged`, and says how often it tossed."""
    ragged(theta)
    sites = pyro.poutine.runtime._PYRO_STACK[0].draws
    pyro.deterministic("tosses", torch.tensor(len(sites) - 1.0))


TELLING = PyroSimulator(telling, AXES, observed=("tosses", "x"), vectorized=False, rows_per_seed=100, contrasts=3)


@pytest.fixture(scope="module")
def rows():
    return run(TELLING, 700)


def test_stored_gold_is_that_by_hand(rows):
    tosses, x = rows.x.double().unbind(1)
    leaf = rows.theta.clone().requires_grad_()
    own = ragged_by_hand(leaf, tosses, x)
    slope = torch.autograd.grad(own.sum(), leaf)[0]
    assert rows.theta_alt.shape == (700, 3, 2) and rows.z is None
    assert torch.allclose(rows.joint_score, slope, rtol=1e-9, atol=1e-9)
    far = ragged_by_hand(rows.theta_alt, tosses[:, None], x[:, None])
    assert torch.allclose(rows.joint_log_ratio, own.detach()[:, None] - far, rtol=1e-9, atol=1e-9)
    off = ragged_by_hand(rows.theta_alt + 1e-6, tosses[:, None], x[:, None])
    assert not torch.allclose(rows.joint_log_ratio, own.detach()[:, None] - off, rtol=1e-9, atol=1e-9), "saboteur"
    assert tosses.max() > 4 > tosses.min(), "runs of many lengths"


def test_stored_gold_passes(rows):
    check_gold(TELLING, rows).raise_if_failed()
    assert z_of_mean(rows.joint_score) < 4
    wrong = {"joint_score": rows.joint_score + 0.3 * rows.joint_score.std(0), "joint_log_ratio": -rows.joint_log_ratio}
    for name, column in wrong.items():
        assert not check_gold(TELLING, type(rows)(**{**vars(rows), name: column})).passed


def test_draws_carry_no_gradient():
    """z ~ N(theta, 2^2), x ~ N(z, 1): the score would be 0 through the draw, and is (z - theta) / 4."""

    def single(theta):
        z = pyro.sample("z", dist.Normal(theta[0], 2.0))
        pyro.sample("x", dist.Normal(z, 1.0))

    simulator = PyroSimulator(single, [MU], vectorized=False, rows_per_seed=100, observed=("x", "z"))
    rows = run(simulator, 100)
    assert torch.allclose(rows.joint_score, (rows.x[:, 1:] - rows.theta) / 4, atol=1e-12)
    assert rows.theta_alt.shape == (100, 4, 1)


def test_it_warns_once_how_slow_it_is():
    simulator = PyroSimulator(ragged, AXES, vectorized=False)
    words = (
        r"'PyroSimulator\(ragged\)' runs row by row: [\d.]+ ms a row with its gold, \d+ times as long as a vectorised"
    )
    with pytest.warns(SbiWarning, match=words):
        simulate(simulator, 5, seed=1, progress=False)
    simulate(simulator, 5, seed=1, progress=False)


def test_rows_depend_on_the_seed_alone():
    simulator = PyroSimulator(ragged, AXES, vectorized=False, rows_per_seed=5)
    rows, again = run(simulator, 20), run(simulator, 12)
    for name in ("x", "joint_score", "joint_log_ratio"):
        assert torch.equal(getattr(rows, name)[:12], getattr(again, name))
    assert PyroSimulator(ragged, AXES, vectorized=False).rows_per_seed == 1


def test_contrasts_may_be_none():
    rows = run(PyroSimulator(ragged, AXES, vectorized=False, contrasts=0), 5)
    assert rows.joint_score.shape == (5, 2) and rows.theta_alt is None and rows.joint_log_ratio is None


def test_gold_is_only_in_the_rows(rows):
    with pytest.raises(MissingGold, match="runs row by row: its gold is stored with the rows"):
        TELLING.log_joint(rows.theta, rows.x, None, None)
    with pytest.raises(MissingGold, match="has no log_joint"):
        joint_score(TELLING, rows)
    assert run(Events(TELLING, 3), 4).x.shape == (4, 3, 2), "without gold, events may still be made"


def test_designs_come_row_by_row():
    def measured(theta, design):
        pyro.sample("x", dist.Normal(theta[0] * design[0], 1.0))

    simulator = PyroSimulator(measured, [MU], designs=[Parameter("gain", 1, 2)], vectorized=False)
    rows = run(simulator, 6, design=torch.linspace(1, 2, 6)[:, None])
    assert torch.allclose(rows.joint_score, (rows.x - rows.theta * rows.design) * rows.design, atol=1e-12)
    with pytest.raises(InputError, match="give simulate"):
        run(simulator, 6)


def test_rows_that_fail_are_kept_apart():
    def fragile(theta):
        z = pyro.sample("z", dist.Normal(theta[0], 1.0))
        if z > 1.5:
            raise ZeroDivisionError("too far")
        pyro.sample("x", dist.Normal(z, 1.0))

    for size in (1, 20):
        simulator = PyroSimulator(fragile, [MU], vectorized=False, rows_per_seed=size)
        rows = run(simulator, 60, max_failures=30)
        lost = ~rows.valid
        assert 0 < lost.sum() < 30 and rows.joint_score[lost].isnan().all() and rows.x[lost].isnan().all()
        assert rows.joint_score[~lost].isfinite().all() and rows.joint_log_ratio[~lost].isfinite().all()
        assert all("too far" in text for text in rows.failures.values()) and len(rows.failures) == lost.sum()
        check_gold(simulator, rows)


def uneven(theta):
    n = int(pyro.sample("n", dist.Poisson(torch.tensor(2.0)))) + 1
    pyro.sample("x", dist.Normal(theta[0], 1.0).expand([n]).to_event(1))


def theta_chooses(theta):
    if theta[0] > 0:
        pyro.sample("z", dist.Normal(theta[0], 1.0))
    pyro.sample("x", dist.Normal(theta[0], 1.0))


def moving(theta):
    pyro.sample("x", dist.Uniform(theta[0] - 2, theta[0] + 2))


def no_tensor(theta):
    pyro.sample("x", dist.Normal(theta[0].item(), 1.0))


def masked_but_used(theta):
    z = pyro.sample("z", dist.Normal(theta[0], 1.0))
    with pyro.poutine.mask(mask=z > 0):
        y = pyro.sample("y", dist.Normal(theta[0], 1.0))
    pyro.sample("x", dist.Normal(z + y, 1.0))


def masked_but_used_in_x(theta):
    z = pyro.sample("z", dist.Normal(theta[0], 1.0))
    y = pyro.sample("y", dist.Normal(theta[0], 1.0).mask(z > 0))
    pyro.deterministic("x", z + y)


def masked_but_steers(theta):
    z = pyro.sample("z", dist.Normal(theta[0], 1.0))
    with pyro.poutine.mask(mask=z > 0):
        y = pyro.sample("y", dist.Gamma(2.0, 1.0))
    for k in range(int(3 * y)):
        pyro.sample(f"step_{k}", dist.Normal(theta[0], 1.0))
    pyro.sample("x", dist.Normal(z, 1.0))


def masked_and_unused(theta):
    z = pyro.sample("z", dist.Normal(theta[0], 1.0))
    with pyro.poutine.mask(mask=z > 0):
        y = pyro.sample("y", dist.LogNormal(theta[0], 0.5))
    pyro.sample("x", dist.Normal(torch.where(z > 0, y, z), 1.0))


def test_masked_draws_that_are_not_used_are_fine():
    simulator = PyroSimulator(masked_and_unused, [MU], vectorized=False, rows_per_seed=100)
    rows = run(simulator, 1000)
    assert rows.joint_score.isfinite().all() and rows.joint_log_ratio.isfinite().all()
    check_gold(simulator, rows).raise_if_failed()


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (masked_but_used, r"masked draws of the sites \['y'\] are used"),
        (masked_but_used_in_x, r"masked draws of the sites \['y'\] are used"),
        (masked_but_steers, r"masked draws of the sites \['y'\] are used"),
        (uneven, r"x has shape \(\d,\) in one row and \(\d,\) in another"),
        (theta_chooses, "site 'z' is there at one theta and not at another"),
        (moving, "site 'x': its support moves with theta"),
        (no_tensor, "log p changes with 'mu', but its gradient does not say so"),
        (gaussian, r"the program raised IndexError for each of 8 theta \(1,\).*Let it take one theta \(D,\)"),
    ],
)
def test_refused(program, words):
    simulator = PyroSimulator(program, [MU], vectorized=False, rows_per_seed=20)
    with pytest.raises(SimulatorError, match=words):
        run(simulator, 20)


def test_a_branch_is_refused_with_the_way_out():
    with pytest.raises(SimulatorError, match="vectorized=False"):
        PyroSimulator(ragged, AXES).check()
