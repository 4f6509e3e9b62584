"""Diagnoses of whole estimators: exact ones pass, wrong ones do not, and what cannot be checked is said."""

import warnings

import pytest
import torch

from sbi_core import Events, InputError, Parameter, Simulations, Simulator, infer, simulate
from sbi_core.errors import SbiWarning
from sbi_core.estimators import Ensemble, PosteriorEstimator, RatioEstimator, alices, fit, npe
from sbi_core.inference.checks import two_sample
from sbi_core.inference.checks.closure import log_ratios, reweighted
from sbi_core.inference.checks.diagnose import diagnose
from sbi_core.inference.checks.predictive import predictive
from sbi_core.simulators import LinearGaussian

NARROW = {"latent_std": 0.5, "noise_std": 0.3}
WORLD = LinearGaussian(1, **NARROW)
QUIET = {"progress": False, "seed": 1}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(two_sample, "STEPS", 50)


class Steep(LinearGaussian):
    """Its log likelihood is too large by a factor, as if the noise were less."""

    def log_likelihood(self, theta, x, design=None):
        return 1.6 * super().log_likelihood(theta, x, design)


class Shifted(LinearGaussian):
    def log_likelihood(self, theta, x, design=None):
        return super().log_likelihood(theta + 0.3, x, design)


def failed(found):
    return {check.name for check in found.failed}


@pytest.mark.parametrize("options", [{}, {"iid": 5}, {"method": "chains", "n": 200, "draws": 49}])
def test_an_exact_likelihood_passes(options):
    found = diagnose(WORLD, WORLD, **QUIET, **options)
    assert found.passed and found.verdict.startswith(f"{len(found.checks)} checks passed on {found.pairs} pairs")
    assert ("ratio slope" in {check.name for check in found.checks}) == ("iid" not in options)
    assert found.ranks.shape == (found.pairs, 1) and found.spread == "unchecked"


def test_a_wrong_likelihood_does_not():
    steep, shifted = (diagnose(kind(1, **NARROW), WORLD, **QUIET) for kind in (Steep, Shifted))
    assert {"ratio slope", "variance of normal scores", "coverage at 90%"} <= failed(steep)
    assert {"ratio mean", "mean of normal scores"} <= failed(shifted)


def test_sets_of_many_find_smaller_faults():
    class Slightly(LinearGaussian):
        def log_likelihood(self, theta, x, design=None):
            return super().log_likelihood(theta + 0.06, x, design)

    assert "mean of normal scores" in failed(diagnose(Slightly(1, **NARROW), WORLD, iid=10, **QUIET))


class Width(Simulator):
    """x ~ N(0, theta^2): one x says little, and its sign nothing."""

    parameters = (Parameter("width", 0.5, 2.0),)
    x_shape = (1,)

    def sample(self, theta, design, generator):
        return theta * torch.randn(theta.shape, generator=generator).double(), None

    def log_likelihood(self, theta, x, design=None):
        return (-0.5 * (x / theta).square() - theta.log())[..., 0]


class Blind(Width):
    def log_likelihood(self, theta, x, design=None):
        return 0.0 * (x + theta)[..., 0]


def test_sets_are_seen_by_mean_and_spread():
    assert diagnose(Width(), Width(), iid=10, **QUIET).passed
    blind = diagnose(Blind(), Width(), iid=10, **QUIET)
    assert "two samples of (theta, x), moments" in failed(blind)
    assert not any(name.startswith(("ranks", "coverage", "TARP")) for name in failed(blind)), "it returns the prior"


def test_closure_on_exact_ratios_and_on_wrong_ones():
    here, there = torch.tensor([0.0]).double(), torch.tensor([0.5]).double()
    base, other = (simulate(WORLD, 4000, proposal=at, seed=s, progress=False).x for s, at in ((1, here), (2, there)))
    at = here.expand(4000, 1), there.expand(4000, 1)
    for estimator, passes in ((WORLD, True), (Steep(1, **NARROW), False)):
        checks, curve = reweighted(log_ratios(estimator, *at, base), base, other, 1e-3)
        assert all(check.passed for check in checks) == passes
        assert len(curve.at) == len(curve.value) and curve.at[0] <= curve.at[-1]
    checks, curve = reweighted(20 * log_ratios(WORLD, *at, base), base, other, 1e-3)
    assert checks[0].passed is None and curve is None, "too few rows count"


def test_at_x_obs():
    found = diagnose(WORLD, WORLD, x_obs=torch.tensor([0.7]), n=200, **QUIET)
    assert found.passed and {"posterior predictive", "two samples at x_obs, moments"} <= {c.name for c in found.checks}
    theta, sets = torch.zeros(3000, 1).double(), torch.zeros(1, 20, 1).double()
    assert predictive(WORLD, theta, sets[0] + 20, 1e-3, design=None, seed=1).passed is False
    assert predictive(WORLD, theta[:100], sets[0] + 20, 1e-3, design=None, seed=1).passed is None
    spread = torch.linspace(-1, 1, 20).double()[:, None]
    assert predictive(WORLD, theta, spread, 1e-3, design=None, seed=1).passed is True
    assert "sd of column 0" in predictive(WORLD, theta, sets[0], 1e-3, design=None, seed=1).text


class Pull(Simulator):
    """x = theta * design + noise."""

    parameters = (Parameter("a", -1.0, 1.0),)
    designs = (Parameter("pull", 0.5, 5.0),)
    x_shape = (1,)

    def sample(self, theta, design, generator):
        return theta * design + torch.randn(theta.shape, generator=generator).double(), None

    def log_likelihood(self, theta, x, design=None):
        return -0.5 * (x - theta * design).square().sum(-1)


class Fixed(Pull):
    """Reads every design as the same one."""

    def log_likelihood(self, theta, x, design=None):
        return super().log_likelihood(theta, x, torch.full_like(design, 1.0))


@pytest.mark.parametrize("iid", [None, 3])
def test_designs(iid):
    design = 0.5 + 4.5 * torch.rand(500 * (iid or 1), 1, generator=torch.Generator().manual_seed(1)).double()
    options = {"n": 500, "iid": iid, "design": design, **QUIET}
    assert diagnose(Pull(), Pull(), **options).passed
    assert not diagnose(Fixed(), Pull(), **options).passed


def test_runs_of_events():
    runs = Events(WORLD, 5)
    assert diagnose(runs, runs, n=200, **QUIET).passed


def trained(rows, seed=1, head=PosteriorEstimator, loss=npe, max_epochs=10, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SbiWarning)
        start, more = head.from_data(rows, **options), {"max_epochs": max_epochs, "progress": False}
        return fit(start, loss, rows, seed=seed, simulator=LinearGaussian(2), **more)


def test_few_rows_are_found_out():
    """Fault F31: 30 rows; the posterior is unchecked before, failed after, and never said to have converged."""
    world = LinearGaussian(2)
    run = trained(simulate(world, 30, seed=1, progress=False), max_epochs=300)
    before = infer(run.estimator, world.prior, torch.tensor([0.5, 1.0]), seed=1)
    assert before.verdicts["coverage"] == "unchecked"
    found = diagnose(run.estimator, world, **QUIET)
    after = found.annotate(before)
    assert not found.passed and any(name.startswith("coverage") for name in failed(found))
    assert after.verdicts["coverage"].startswith("FAILED") and any("calibration failed" in flag for flag in after.flags)
    assert not any("converged" in text for text in (*after.verdicts.values(), *after.flags, str(found)))
    repaired = found.recalibrated(before)
    assert "recalibrated by 1000" in repaired.verdicts["coverage"]
    inside = [float(p.contains(before.sample((2000,)), 0.5).double().mean()) for p in (before, repaired)]
    assert inside[1] > inside[0], "regions are wider"


def test_held_out_rows():
    world = LinearGaussian(2)
    rows = simulate(world, 600, seed=3, progress=False)
    run = trained(rows[:400], head=RatioEstimator, loss=alices, hidden=[8])
    with pytest.raises(InputError, match=r"400 rows of training \(campaign seed 3\)"):
        diagnose(run.estimator, rows[:400], **QUIET)
    found = diagnose(run.estimator, rows[400:], **QUIET)
    assert found.pairs == 200 and any("none of them was in training is unchecked" in flag for flag in found.flags)
    fresh = simulate(world, 200, seed=4, progress=False)
    assert not any("in training" in flag for flag in diagnose(run.estimator, fresh, **QUIET).flags)
    anonymous = Simulations.from_arrays(fresh.theta, fresh.x, parameters=world.parameters)
    with pytest.raises(InputError, match="do not say which density"):
        diagnose(run.estimator, anonymous, **QUIET)
    found = diagnose(run.estimator, anonymous, prior=world.prior, **QUIET)
    assert any("whether training has seen these rows is unchecked" in flag for flag in found.flags)
    with pytest.raises(InputError, match="prior: the rows were drawn from"):
        diagnose(run.estimator, fresh, prior=LinearGaussian(2, prior_std=2.0).prior, **QUIET)


def test_what_trainings_leave_open_is_stated():
    rows = simulate(LinearGaussian(2), 300, seed=3, progress=False)
    runs = [trained(rows, seed, RatioEstimator, alices, hidden=[8]) for seed in (1, 2)]
    found = diagnose(Ensemble([run.estimator for run in runs]), LinearGaussian(2), n=100, **QUIET)
    assert "posterior sd between the means of 2 trainings" in found.spread
    assert 0 < float(found.spread.split()[0]) < 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n": 20}, ["n = 20", "at least 100"]),
        ({"false_alarm": 2}, ["false_alarm = 2"]),
        ({"method": "direct"}, ["method='direct'", "LinearGaussian"]),
        ({"method": "hmc"}, ["method = 'hmc'", "'chains'"]),
        ({"iid": 0}, ["iid = 0"]),
        ({"time_limit": 1e-9}, ["time limit", "Raise time_limit"]),
    ],
)
def test_errors_name_the_cure(options, words):
    with pytest.raises(InputError) as caught:
        diagnose(WORLD, WORLD, **{**QUIET, **options})
    assert all(word in str(caught.value) for word in words)
