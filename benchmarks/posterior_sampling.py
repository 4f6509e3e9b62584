"""Samples of a posterior from any log likelihood, the same way for every library, and how far they are from the truth.

sbi's default sampler (vectorised slice sampling, 20 chains) moves one coordinate of 20 points at a time: it takes one
to three minutes an observation, and on SLCP leaves whole modes out, whichever estimator it reads. Here a population is
tempered from the prior to the posterior, which finds the modes with their weights.
"""

import warnings
from collections.abc import Callable

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier
from torch import Tensor
from torch.distributions import Categorical, Distribution, MixtureSameFamily, MultivariateNormal

LogLikelihood = Callable[[Tensor], Tensor]
"""theta (M, D), float64, inside the prior -> nats (M,)."""

CANDIDATES, PARTICLES = 20_000, 2000
"""Draws of the prior at the start, and population from the first resampling on."""

MOVES, LAST_MOVES, REFITS, COMPONENTS = 5, 40, 10, 12
"""Rounds of moves at each temperature, and at the end."""


def tempered_sample(log_likelihood: LogLikelihood, prior: Distribution, n: int) -> Tensor:
    """Draw n of the posterior prior * exp(log_likelihood), (n, D), float64, from torch's global random state.

    Sequential Monte Carlo (Del Moral, Doucet & Jasra 2006) through prior * exp(b log_likelihood), each b such that half
    the population counts, with moves by differential evolution (ter Braak 2006): theta + g (theta_i - theta_j), where i
    and j are of the other half of the population, so the proposal is symmetric. One move in ten has g = 1, which jumps
    between modes.
    """

    def value_of(theta: Tensor) -> tuple[Tensor, Tensor]:
        """log prior and log likelihood, (M,) each; the estimator is asked inside the prior only."""
        before = prior.log_prob(theta)
        found = torch.full_like(before, -torch.inf)
        inside = before.isfinite()
        with torch.no_grad():
            found[inside] = log_likelihood(theta[inside]).double().nan_to_num(nan=-torch.inf, posinf=-torch.inf)
        return before, found

    theta = prior.sample(torch.Size([CANDIDATES])).double()
    before, value = value_of(theta)
    heat = 0.0
    while heat < 1:
        step = _step(value, 1 - heat, PARTICLES // 2)
        weight = torch.softmax(torch.where(value.isfinite(), step * value, -torch.inf), 0)
        chosen = _resample(weight, PARTICLES)
        theta, before, value = theta[chosen], before[chosen], value[chosen]
        heat = 1.0 if heat + step > 1 - 1e-9 else heat + step
        for _ in range(MOVES):
            theta, before, value = _move(theta, before, value, heat, value_of)
    for k in range(LAST_MOVES):
        if k % REFITS == 0:
            halves = torch.randperm(PARTICLES).tensor_split(2)
            mixtures = [_Mixture(theta[half]) for half in halves]
        for mine, mixture in zip(halves, mixtures[::-1], strict=True):
            theta, before, value = _jump(theta, before, value, mine, mixture, value_of)
        theta, before, value = _move(theta, before, value, 1.0, value_of)
    return theta[torch.randperm(PARTICLES)[:n]]


def _step(value: Tensor, most: float, wanted: float) -> float:
    """The largest step in inverse temperature, up to `most`, with an effective number of at least `wanted`."""

    def effective(step: float) -> float:
        weight = torch.softmax(step * value[value.isfinite()], 0)
        return float(1 / weight.square().sum())

    if effective(most) >= wanted:
        return most
    low, high = 0.0, most
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if effective(middle) >= wanted else (low, middle)
    return max(low, 1e-6)


def _resample(weight: Tensor, n: int) -> Tensor:
    """Systematic resampling: n indices, (n,), shuffled."""
    at = (torch.arange(n) + torch.rand(1)).double() / n
    found = torch.searchsorted(weight.cumsum(0), at).clamp(max=len(weight) - 1)
    return found[torch.randperm(n)]


def _move(
    theta: Tensor, before: Tensor, value: Tensor, heat: float, value_of: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor, Tensor]:
    """One Metropolis round: each half of the population moves by differences of the other."""
    theta, before, value = theta.clone(), before.clone(), value.clone()
    order, dims = torch.randperm(len(theta)), theta.shape[1]
    halves = order.tensor_split(2)
    for mine, other in (halves, halves[::-1]):
        i, j = other[torch.randint(len(other), (2, len(mine)))]
        size = 2.38 / (2 * dims) ** 0.5 * torch.exp(torch.rand(len(mine)) * np.log(0.05)).double()
        size = torch.where(torch.rand(len(mine)) < 0.1, 1.0, size)
        new = theta[mine] + size[:, None] * (theta[i] - theta[j])
        prior_there, there = value_of(new)
        gain = prior_there - before[mine] + heat * (there - value[mine])
        take = torch.rand(len(mine)).double().log() < gain
        took = mine[take]
        theta[took], before[took], value[took] = new[take], prior_there[take], there[take]
    return theta, before, value


class _Mixture:
    """A mixture of normals with wide tails, fitted to theta (M, D)."""

    def __init__(self, theta: Tensor) -> None:
        self.shift, self.scale = theta.mean(0), theta.std(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            found = GaussianMixture(COMPONENTS, reg_covar=1e-4, random_state=0).fit(
                ((theta - self.shift) / self.scale).numpy()
            )
        weight, mean, cov = (torch.from_numpy(v) for v in (found.weights_, found.means_, found.covariances_))
        wide = torch.cat([cov * 1.2, cov * 6])
        each = MultivariateNormal(torch.cat([mean, mean]), wide)
        self.density = MixtureSameFamily(Categorical(torch.cat([0.8 * weight, 0.2 * weight])), each)

    def sample(self, n: int) -> Tensor:
        return self.shift + self.scale * self.density.sample((n,))

    def log_prob(self, theta: Tensor) -> Tensor:
        return self.density.log_prob((theta - self.shift) / self.scale)


def _jump(theta, before, value, mine, mixture, value_of):
    """One independent Metropolis move of the particles `mine` by a mixture fitted to the others."""
    theta, before, value = theta.clone(), before.clone(), value.clone()
    new = mixture.sample(len(mine))
    prior_there, there = value_of(new)
    gain = prior_there - before[mine] + there - value[mine] + mixture.log_prob(theta[mine]) - mixture.log_prob(new)
    take = torch.rand(len(mine)).double().log() < gain
    STAT.append(float(take.double().mean()))
    took = mine[take]
    theta[took], before[took], value[took] = new[take], prior_there[take], there[take]
    return theta, before, value


STAT = []


def c2st(samples: Tensor, truth: Tensor, seed: int) -> float:
    """Accuracy of a classifier that tells samples (n, D) from the truth (n, D), .5 to 1.

    Lopez-Paz & Oquab, arXiv:1610.06545, as in arXiv:2101.04653: a perceptron of two layers of 10 D, 5 folds, both
    z-scored on the truth.
    """
    shift, scale, dims = truth.mean(0), truth.std(0), truth.shape[1]
    rows = torch.cat([(truth - shift) / scale, (samples - shift) / scale]).numpy()
    label = np.repeat([0, 1], [len(truth), len(samples)])
    network = MLPClassifier((10 * dims, 10 * dims), max_iter=1000, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return float(cross_val_score(network, rows, label, cv=KFold(5, shuffle=True, random_state=seed)).mean())


def moments(samples: Tensor, truth: Tensor) -> tuple[float, float]:
    """Offset of the mean in units of the true spread, root mean square over axes, and mean log ratio of the spreads."""
    offset = (samples.mean(0) - truth.mean(0)) / truth.std(0)
    return float(offset.square().mean().sqrt()), float((samples.std(0) / truth.std(0)).log().mean())
