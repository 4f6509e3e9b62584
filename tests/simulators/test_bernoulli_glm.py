import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from measures import z_of_mean

from sbi_core import GoldError, InputError, Store, check_gold, joint_score, simulate
from sbi_core.priors import describe, restore
from sbi_core.simulators import BernoulliGLM

WORLD = BernoulliGLM()
SMALL = BernoulliGLM(12, stimulus_seed=3)
PUBLISHED = np.load(Path(__file__).parent / "reference" / "bernoulli_glm.npz")


def regressors(n_bins, seed):
    """V from its definition, bin by bin."""
    stimulus = np.random.RandomState(seed).randn(n_bins)
    rows = [[1.0, *(stimulus[t - lag] if t >= lag else 0.0 for lag in range(9))] for t in range(n_bins)]
    return torch.tensor(rows, dtype=torch.float64)


V = regressors(100, 42)


@pytest.fixture(scope="module")
def rows():
    return simulate(WORLD, 20_000, seed=3, progress=False)


@pytest.mark.parametrize("k", [1, 2])
def test_published_statistics_of_published_spikes(k):
    spikes, x = (torch.from_numpy(PUBLISHED[f"{name}_{k}"]).double() for name in ("spikes", "x_obs"))
    at = simulate(WORLD, 20, seed=1, progress=False).theta
    by_bin = torch.distributions.Bernoulli(logits=at @ V.T).log_prob(spikes).sum(-1)
    assert torch.allclose(WORLD.log_likelihood(at, x), by_bin, atol=1e-4), "x has single precision"
    for saboteur in (BernoulliGLM(stimulus_seed=1), BernoulliGLM(99)):
        assert not torch.allclose(saboteur.log_likelihood(at, x), by_bin, atol=1)


def test_likelihood_of_every_spike_train_adds_to_one():
    trains = torch.tensor(list(itertools.product([0.0, 1.0], repeat=12)), dtype=torch.float64)
    x = trains @ regressors(12, 3)
    theta = simulate(SMALL, 5, seed=1, progress=False).theta[:, None]
    log_p = SMALL.log_likelihood(theta, x)
    assert torch.allclose(log_p.exp().sum(1), torch.ones(5).double(), atol=1e-12)
    assert not torch.allclose(SMALL.log_likelihood(theta, x + 0.01).exp().sum(1), torch.ones(5).double(), atol=1e-3)
    assert len(x.round(decimals=9).unique(dim=0)) == len(x), "no two trains have the same x"
    score, chance = SMALL.score(theta, x), log_p.exp()[..., None]
    assert torch.allclose((chance * score).sum(1), torch.zeros(5, 10).double(), atol=1e-11)
    square = (chance[..., None] * score[..., None] * score[..., None, :]).sum(1)
    assert torch.allclose(square, SMALL.fisher_information(theta[:, 0]), atol=1e-10)
    assert not torch.allclose(square, SMALL.fisher_information(theta[:, 0] + 0.1), atol=1e-3)


def test_sampled_trains_follow_the_likelihood():
    theta = torch.tensor([-0.5, 0.3, 0.8, -0.2, 0.0, 0.5, -0.4, 0.1, 0.0, 0.2]).double()
    x = simulate(SMALL, 20_000, seed=1, proposal=theta, progress=False).x
    exact = torch.sigmoid(theta @ regressors(12, 3).T) @ regressors(12, 3)
    wide = SMALL.fisher_information(theta)
    assert z_of_mean(x, exact) < 4
    assert z_of_mean(((x - exact)[:, :, None] * (x - exact)[:, None]).flatten(1), wide.flatten()) < 4
    assert z_of_mean(x, torch.sigmoid((theta + 0.1) @ regressors(12, 3).T) @ regressors(12, 3)) > 4, "saboteur"


def test_statistics_are_a_count_and_sums(rows):
    assert rows.x.shape == (20_000, 10) and rows.z.shape == (20_000, 0)
    count = rows.x[:, 0]
    assert torch.equal(count, count.round()) and count.min() >= 0 and count.max() <= 100
    assert z_of_mean(rows.x - torch.sigmoid(rows.theta @ V.T) @ V) < 4
    assert z_of_mean(rows.x - torch.sigmoid((rows.theta + 0.05) @ V.T) @ V) > 4, "saboteur: theta off by 0.05"


def test_prior_is_the_published_one(rows):
    precision = torch.zeros(10, 10).double()
    precision[0, 0] = 0.5
    smooth = torch.zeros(9, 9).double()
    for i in range(9):
        smooth[i, i] = 1 + math.sqrt(i / 9)
        if i > 0:
            smooth[i, i - 1] = -2
        if i > 1:
            smooth[i, i - 2] = 1
    precision[1:, 1:] = smooth.T @ smooth
    assert torch.allclose(WORLD.prior.precision_matrix, precision, atol=1e-12)
    whitened = rows.theta @ torch.linalg.cholesky(precision)
    square = (whitened[:, :, None] * whitened[:, None]).flatten(1)
    assert z_of_mean(rows.theta) < 4 and z_of_mean(square, torch.eye(10).flatten()) < 4
    assert z_of_mean((1.03 * whitened) ** 2, 1.0) > 4, "saboteur: 3% too wide"
    assert torch.allclose(restore(describe(WORLD.prior)).log_prob(rows.theta[:9]), WORLD.prior.log_prob(rows.theta[:9]))


def test_score_is_the_gradient_and_the_joint_score(rows):
    few = rows[:100]
    exact, step = WORLD.score(few.theta, few.x), 1e-5
    assert torch.allclose(joint_score(WORLD, few), exact, atol=1e-10)
    for d in range(10):
        shift = step * torch.eye(10).double()[d]
        high, low = (WORLD.log_likelihood(few.theta + sign * shift, few.x) for sign in (1, -1))
        assert torch.allclose((high - low) / (2 * step), exact[:, d], atol=1e-4)
        assert not torch.allclose((high - low) / (2 * step), exact[:, d - 1], atol=1e-1)


class WrongSign(BernoulliGLM):
    def log_joint(self, theta, x, z, design):
        return super().log_joint(theta * torch.tensor([1, 1, 1, -1, 1, 1, 1, 1, 1, 1]), x, z, design)


def test_gold_passes(rows):
    check_gold(WORLD, rows[:5000]).raise_if_failed()
    with pytest.raises(GoldError):
        check_gold(WrongSign(), rows[:1000]).raise_if_failed()


def test_empty_latents_are_stored(tmp_path, rows):
    store = simulate(WORLD, 1500, seed=3, store=tmp_path / "glm.zarr", progress=False)
    again = Store(store.path)[:]
    assert again.z.shape == (1500, 0) and torch.equal(again.x, rows.x[:1500])
    assert torch.equal(again.info.proposal.scale_tril, WORLD.prior.scale_tril)


def test_stimulus_is_a_setting():
    assert WORLD.settings == {"n_bins": 100, "stimulus_seed": 42}
    assert WORLD.settings != SMALL.settings


def test_too_few_bins_are_refused():
    with pytest.raises(InputError, match="n_bins = 8: expected at least 9"):
        BernoulliGLM(8)


def test_shapes_broadcast():
    theta, x = torch.linspace(-2, 2, 50).reshape(5, 1, 10), torch.linspace(-9, 9, 40).reshape(4, 10)
    value = WORLD.log_likelihood(theta, x)
    assert value.shape == (5, 4) and torch.allclose(value[2, 1], WORLD.log_likelihood(theta[2, 0], x[1]))
    assert WORLD.score(theta, x).shape == (5, 4, 10)
    assert WORLD.fisher_information(theta).shape == (5, 1, 10, 10)
    assert torch.equal(WORLD.observe(x)(theta), value)
