"""The Gaussian process: its formulas by hand, another implementation, and bands that hold what they say."""

import math
from dataclasses import replace

import pytest
import torch
from measures import z_of_mean

from sbi_core.design.gaussian_process import CONSTANT, JITTER, GaussianProcess
from sbi_core.inference.frequentist.maximum import Box
from sbi_core.seeding import block_seed, torch_generator

BOX = Box(torch.tensor([0.0, -2.0]).double(), torch.tensor([5.0, 2.0]).double())
DESIGNS, VALUES = BOX.spread(12), BOX.spread(12)[:, 0].sin() + 0.3 * BOX.spread(12)[:, 1]
ERRORS = torch.linspace(0.01, 0.4, 12).double()
PROCESS = GaussianProcess(BOX, DESIGNS, VALUES, ERRORS, torch.tensor([0.4, 0.9]).double(), 0.7)
WHERE = BOX.spread(64)[40:]


def kernel(left, right):
    """Matern-5/2 of the process above, and the constant's variance, one pair at a time."""
    r = math.hypot((left[0] - right[0]) / (0.4 * 5), (left[1] - right[1]) / (0.9 * 4))
    matern = (1 + math.sqrt(5) * r + 5 / 3 * r**2) * math.exp(-math.sqrt(5) * r)
    return 0.7**2 * matern + (CONSTANT * float(VALUES.std(correction=0))) ** 2


def by_hand(errors):
    """Mean and standard deviation from the inverse of the values' covariance."""
    own = torch.tensor([[kernel(a, b) for b in DESIGNS.tolist()] for a in DESIGNS.tolist()]).double()
    cross = torch.tensor([[kernel(a, b) for b in DESIGNS.tolist()] for a in WHERE.tolist()]).double()
    inverse = torch.linalg.inv(own + torch.diag(errors**2))
    alone = torch.tensor([kernel(a, a) for a in WHERE.tolist()]).double()
    mean = VALUES.mean() + cross @ inverse @ (VALUES - VALUES.mean())
    return mean, (alone - ((cross @ inverse) * cross).sum(1)).sqrt()


def test_posterior_by_hand():
    for mine, other in zip(PROCESS.predict(WHERE), by_hand(ERRORS), strict=True):
        assert torch.allclose(mine, other, atol=1e-8)
    for mine, wrong in zip(PROCESS.predict(WHERE), by_hand(1.05 * ERRORS), strict=True):
        assert not torch.allclose(mine, wrong, atol=1e-4), "saboteur: errors 5% larger"
    mean, sd = PROCESS.predict(WHERE.reshape(4, 6, 2))
    assert mean.shape == sd.shape == (4, 6) and torch.equal(mean.flatten(), PROCESS.predict(WHERE)[0])


@pytest.mark.slow
def test_another_implementation():
    sklearn = pytest.importorskip("sklearn.gaussian_process")
    parts = sklearn.kernels
    lengths = (PROCESS.lengths * BOX.width).tolist()
    constant = (CONSTANT * float(VALUES.std(correction=0))) ** 2
    noise = (ERRORS**2 + JITTER * PROCESS.height**2).numpy()
    for nu, same in ((2.5, True), (1.5, False)):
        both = parts.ConstantKernel(0.7**2) * parts.Matern(lengths, nu=nu) + parts.ConstantKernel(constant)
        other = sklearn.GaussianProcessRegressor(both, alpha=noise, optimizer=None)
        other.fit(DESIGNS.numpy(), (VALUES - VALUES.mean()).numpy())
        mean, sd = (torch.from_numpy(part) for part in other.predict(WHERE.numpy(), return_std=True))
        mine = PROCESS.predict(WHERE)
        assert torch.allclose(mine[0], mean + VALUES.mean(), atol=1e-8) == same, "saboteur: another smoothness"
        assert torch.allclose(mine[1], sd, atol=1e-6) == same


def log_posterior(process):
    """Nats of lengths and height: a normal density of the values, times the log-normal priors."""
    cov = process.covariance(DESIGNS, DESIGNS) + torch.diag(process.errors**2)
    likelihood = torch.distributions.MultivariateNormal(process.values.mean().expand(12), cov).log_prob(process.values)
    spread = float(process.values.std(correction=0))
    logs = torch.cat([process.lengths.log() - math.log(0.3), torch.tensor([process.height / spread]).double().log()])
    return float(likelihood - (logs**2).sum() / 2)


def test_lengths_and_height_are_the_best():
    best = GaussianProcess.fit(BOX, DESIGNS, VALUES, ERRORS)
    top = log_posterior(best)
    for axis in range(2):
        for factor in (0.9, 1.1):
            moved = best.lengths.clone()
            moved[axis] *= factor
            assert log_posterior(replace(best, lengths=moved)) < top
    assert (
        log_posterior(replace(best, height=0.9 * best.height))
        < top
        > log_posterior(replace(best, height=1.1 * best.height))
    )
    near = replace(best, lengths=1.001 * best.lengths)
    assert top - log_posterior(near) < 1e-4, "a maximum is flat"
    assert top - log_posterior(PROCESS) > 1e-2, "saboteur: other lengths"


def test_units_do_not_matter():
    """Values in other units, around another zero, and designs in other units: the same curve."""
    first = GaussianProcess.fit(BOX, DESIGNS, VALUES, ERRORS)
    box = Box(1e3 * BOX.low + 5, 1e3 * BOX.high + 5)
    other = GaussianProcess.fit(box, 1e3 * DESIGNS + 5, 1e-5 * VALUES + 3, 1e-5 * ERRORS)
    for mine, moved in zip(first.predict(WHERE), other.predict(1e3 * WHERE + 5), strict=True):
        assert torch.allclose(mine, (moved - moved.min()) * 1e5 + mine.min(), atol=2e-3)


def test_bands_hold_the_function():
    """Functions drawn from the process: residuals have mean square 1 in units of the stated deviations."""
    generator = torch_generator(block_seed(7, 0))
    designs, where = BOX.spread(60)[:30], BOX.spread(60)[30:35]
    cov = PROCESS.covariance(torch.cat([designs, where]), torch.cat([designs, where])) + 1e-9 * torch.eye(35)
    pulls = {1.0: [], 0.5: [], 2.0: []}
    for _ in range(200):
        g = torch.linalg.cholesky(cov) @ torch.randn(35, generator=generator).double()
        errors = 0.1 + 0.4 * torch.rand(30, generator=generator).double()
        values = g[:30] + errors * torch.randn(30, generator=generator).double()
        for factor, kept in pulls.items():
            mean, sd = replace(PROCESS, designs=designs, values=values, errors=factor * errors).predict(where)
            kept.append(float(((g[30:] - mean) / sd).square().mean()))
    assert z_of_mean(pulls[1.0], 1.0) < 4
    assert z_of_mean(pulls[0.5], 1.0) > 4 and z_of_mean(pulls[2.0], 1.0) > 4, "saboteurs: other errors"


def test_values_that_are_all_the_same():
    flat = GaussianProcess.fit(BOX, DESIGNS, torch.full((12,), 2.5).double(), torch.zeros(12).double())
    mean, sd = flat.predict(WHERE)
    assert torch.allclose(mean, torch.tensor(2.5).double()) and bool(sd.isfinite().all())


def test_repeated_designs_share_their_errors():
    """Two values at one design are one value with their weighted mean."""
    twice = replace(
        PROCESS,
        designs=DESIGNS[[0, 0, *range(1, 12)]],
        values=VALUES[[0, 0, *range(1, 12)]],
        errors=ERRORS[[0, 0, *range(1, 12)]],
    )
    assert float(twice.predict(DESIGNS[0])[1]) < float(PROCESS.predict(DESIGNS[0])[1])
