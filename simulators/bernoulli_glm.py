"""A neuron that answers white noise: a generalised linear model whose sufficient statistics are known."""

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal
from torch.nn.functional import softplus

from sbi_core.errors import InputError
from sbi_core.parameters import Parameter
from sbi_core.simulator import Simulator

_LAGS = 9


class BernoulliGLM(Simulator):
    """A spike in time bin t = 1 .. T with probability sigmoid(V_t theta), V_t = (1, v_t, v_{t-1}, .., v_{t-8}).

    theta = (beta, f_1 .. f_9) is an offset and a filter of the stimulus v, which is 0 before bin 1. x = V^T y (10,),
    with y (T,) the spikes: their number and the spike-triggered sums of the stimulus, sufficient for theta:

        log p(x | theta) = theta^T x - sum_t log(1 + exp(V_t theta)).

    (This is log p(y | theta). It is p(x | theta) itself while no two spike trains have the same x, as is almost surely
    so for normal v; a term free of theta otherwise.) The likelihood is exact, so log_joint is log p(x | theta) and
    z (0,) holds nothing: joint score and score are the same.

    Prior: beta ~ N(0, 2), a variance; f ~ N(0, (F^T F)^-1) with F_ii = 1 + sqrt((i - 1) / 9), F_{i,i-1} = -2,
    F_{i,i-2} = 1, which wants f smooth. The parameters' ranges are ten prior standard deviations.

    v is drawn once, standard normal, by numpy.random.RandomState(stimulus_seed), whose stream NumPy keeps. 42 is the
    seed of the published code; it turns the published spike trains into the published x, to their rounding (float32).
    Source: Lueckmann et al., arXiv:2101.04653, T.5.

    Args:
        n_bins: time bins T.
        stimulus_seed: of the stimulus.

    Example:
        >>> neuron = BernoulliGLM()
        >>> silent, x = torch.zeros(10), torch.zeros(10)
        >>> round(float(neuron.log_likelihood(silent, x)), 4)  # 100 fair coins
        -69.3147
    """

    x_shape = (1 + _LAGS,)

    def __init__(self, n_bins: int = 100, *, stimulus_seed: int = 42) -> None:
        if n_bins < _LAGS:
            raise InputError(f"n_bins = {n_bins}: expected at least {_LAGS}, the length of the filter.")
        self.n_bins = n_bins
        self.stimulus_seed = stimulus_seed
        stimulus = np.random.RandomState(stimulus_seed).standard_normal(n_bins)
        lagged = [np.pad(stimulus, (lag, 0))[:n_bins] for lag in range(_LAGS)]
        self._matrix = torch.from_numpy(np.stack([np.ones(n_bins), *lagged], 1))
        names = ["beta", *(f"f_{k}" for k in range(1, _LAGS + 1))]
        symbols = [r"\beta", *names[1:]]
        self.parameters = tuple(
            Parameter(name, -10 * std, 10 * std, latex=symbol)
            for name, symbol, std in zip(names, symbols, self.prior.stddev.tolist(), strict=True)
        )

    @property
    def prior(self) -> Distribution:
        """beta ~ N(0, 2), f ~ N(0, (F^T F)^-1), event shape (10,)."""
        ones = torch.ones(_LAGS, dtype=torch.float64)
        first = ones.diag() - ones[1:].diag(-1)
        second = first @ first + torch.sqrt(torch.arange(_LAGS) / _LAGS).diag()
        precision = torch.block_diag(0.5 * ones[:1].diag(), second.T @ second)
        return MultivariateNormal(torch.zeros(1 + _LAGS, dtype=torch.float64), precision_matrix=precision)

    def sample(self, theta: Tensor, design: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw x (M, 10) and an empty z (M, 0) at theta (M, 10)."""
        chance = torch.sigmoid(theta @ self._matrix.T)
        spikes = torch.rand(chance.shape, generator=generator, dtype=torch.float64) < chance
        return spikes.to(torch.float64) @ self._matrix, theta.new_empty((len(theta), 0))

    def log_joint(self, theta: Tensor, x: Tensor, z: Tensor | None, design: Tensor | None) -> Tensor:
        """log p(x | theta), theta (M, 10), x (M, 10), as (M,); z is not looked at."""
        return self.log_likelihood(theta, x)

    def log_likelihood(self, theta: Tensor, x: Tensor, design: Tensor | None = None) -> Tensor:
        """Exact log p(x | theta), theta (*, 10), x (*, 10), broadcasting to (*)."""
        theta = theta.to(torch.float64)
        return (theta * x.to(torch.float64)).sum(-1) - softplus(theta @ self._matrix.T).sum(-1)

    def score(self, theta: Tensor, x: Tensor, design: Tensor | None = None) -> Tensor:
        """Exact grad_theta log p(x | theta) = x - V^T sigmoid(V theta), theta (*, 10), x (*, 10), as (*, 10)."""
        return x.to(torch.float64) - torch.sigmoid(theta.to(torch.float64) @ self._matrix.T) @ self._matrix

    def fisher_information(self, theta: Tensor) -> Tensor:
        """Exact V^T diag(p (1 - p)) V with p = sigmoid(V theta), theta (*, 10), as (*, 10, 10)."""
        chance = torch.sigmoid(theta.to(torch.float64) @ self._matrix.T)
        return (self._matrix.T * (chance * (1 - chance))[..., None, :]) @ self._matrix
