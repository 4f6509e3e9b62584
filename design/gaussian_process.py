"""A function of the design that is known at some places with errors, as a Gaussian process."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sbi_core.inference.frequentist.maximum import Box, climb
from sbi_core.seeding import one_thread

CONSTANT = 2.0
"""Standard deviation of the normal prior of the constant, in standard deviations of the values."""

LENGTH, HEIGHT = (math.log(0.3), 1.0), (0.0, 1.0)
"""Mean and standard deviation of the normal priors of log length, in ranges, and log height, in spreads of values."""

WITHIN = ((0.01, 10.0), (0.1, 10.0))
"""Ranges of lengths and height."""

STARTS = (0.1, 0.3, 1.0)
"""Lengths from which the climb to the best ones starts."""

JITTER = 1e-10
"""Variance added to each value, in units of height^2: exact values a rounding error apart must not break it."""


@dataclass(frozen=True)
class GaussianProcess:
    """Values y_i = g(d_i) + N(0, error_i^2), and g before they were seen: a constant plus a Matern-5/2 process.

        cov[g(d), g(d')] = c^2 + h^2 (1 + a + a^2 / 3) e^-a,    a^2 = 5 sum_k ((d - d')_k / (l_k range_k))^2

    around the mean of the values, c twice their standard deviation. Rasmussen & Williams, Gaussian Processes for
    Machine Learning (2006), eqs. 2.25, 2.26 and 4.17.

    Attributes:
        box: the designs' ranges.
        designs: where g was looked at, (n, K).
        values: what came out, (n,).
        errors: known standard errors, (n,).
        lengths: l, (K,), in ranges.
        height: h, in the unit of the values.

    Example:
        >>> box = Box(torch.zeros(1).double(), torch.ones(1).double())
        >>> g = GaussianProcess.fit(box, box.spread(8), box.spread(8)[:, 0].sin(), torch.full((8,), 1e-3).double())
        >>> [round(float(part), 3) for part in g.predict(torch.tensor([0.5]))]
        [0.479, 0.001]
    """

    box: Box
    designs: Tensor
    values: Tensor
    errors: Tensor
    lengths: Tensor
    height: float

    @classmethod
    def fit(cls, box: Box, designs: Tensor, values: Tensor, errors: Tensor) -> "GaussianProcess":
        """Choose lengths and height that maximise the likelihood of n values (n,) at designs (n, K) times weak priors.

        Both priors are log-normal; without them few values would often be explained by noise, or by length 0, alone.
        """
        unit, spread = (designs - box.low) / box.width, _spread(values)
        apart, seen = _apart(unit, unit), (values - values.mean()) / spread
        noise = torch.diag_embed((errors / spread) ** 2) + CONSTANT**2
        dims = designs.shape[1]
        prior = torch.tensor([LENGTH] * dims + [HEIGHT], dtype=torch.float64)
        ends = torch.tensor([WITHIN[0]] * dims + [WITHIN[1]], dtype=torch.float64).log()
        starts = torch.tensor(STARTS, dtype=torch.float64).log()[:, None].repeat(1, dims + 1)
        starts[:, -1] = 0.0

        def log_posterior(logs: Tensor) -> Tensor:
            """Nats (1, G) at log lengths and log height (1, G, K + 1)."""
            height = logs[..., -1].exp()
            jitter = torch.diag_embed((JITTER * height**2)[..., None].expand(*height.shape, len(seen)))
            lower, failed = torch.linalg.cholesky_ex(_matern(apart, logs[..., :-1].exp(), height) + noise + jitter)
            half = torch.linalg.solve_triangular(lower, seen[:, None].expand(*lower.shape[:-1], 1), upper=False)
            nats = -half.square().sum((-2, -1)) / 2 - lower.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            nats = nats - ((logs - prior[:, 0]) / prior[:, 1]).square().sum(-1) / 2
            return torch.where(failed == 0, nats, -torch.inf)

        with one_thread():
            best = climb(log_posterior, starts[None], Box(ends[:, 0], ends[:, 1]), gain=1e-3).best().theta[0, 0].exp()
        return cls(box, designs, values, errors, best[:-1], float(best[-1] * spread))

    def covariance(self, left: Tensor, right: Tensor) -> Tensor:
        """Covariance of g at designs (A, K) and (B, K) before anything was seen, (A, B)."""
        apart = _apart(*((designs - self.box.low) / self.box.width for designs in (left, right)))
        return _matern(apart, self.lengths, torch.tensor(self.height).double()) + self._constant**2

    def predict(self, designs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of g at designs (*, K), both (*)."""
        mean, sd, _ = self.update(designs.reshape(-1, designs.shape[-1]).to(torch.float64))
        return mean.reshape(designs.shape[:-1]), sd.reshape(designs.shape[:-1])

    def update(self, designs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean (M,) and standard deviation (M,) of g at designs (M, K), and its covariance with g at those seen (M, n).

        The covariance given the values is that with their errors, C (C + E)^-1 E instead of C - C (C + E)^-1 C, which
        would be a difference of nearly equal numbers.
        """
        lower, weights = self._solved
        between = self.covariance(designs, self.designs)
        known = torch.cholesky_solve(between.mT, lower).mT
        variance = self._constant**2 + self.height**2 - (known * between).sum(1)
        return self.values.mean() + between @ weights, variance.clamp(min=0.0).sqrt(), known * self._noise

    @property
    def _constant(self) -> float:
        return CONSTANT * float(_spread(self.values))

    @property
    def _noise(self) -> Tensor:
        """Variances of the values about g, (n,)."""
        return self.errors**2 + JITTER * self.height**2

    @cached_property
    def _solved(self) -> tuple[Tensor, Tensor]:
        """Cholesky factor (n, n) of the values' covariance, and its inverse times their deviations (n,)."""
        lower = torch.linalg.cholesky(self.covariance(self.designs, self.designs) + torch.diag(self._noise))
        return lower, torch.cholesky_solve((self.values - self.values.mean())[:, None], lower)[:, 0]


def _apart(left: Tensor, right: Tensor) -> Tensor:
    """Squared differences of (A, K) and (B, K) along each axis, (A, B, K)."""
    return (left[:, None] - right).square()


def _matern(apart: Tensor, lengths: Tensor, height: Tensor) -> Tensor:
    """h^2 (1 + a + a^2 / 3) e^-a of squared differences (A, B, K), lengths (*, K) and height (*), as (*, A, B)."""
    square = 5 * (apart / lengths[..., None, None, :] ** 2).sum(-1)
    a = (square + 1e-24).sqrt()
    return height[..., None, None] ** 2 * (1 + a + square / 3) * (-a).exp()


def _spread(values: Tensor) -> Tensor:
    """Standard deviation of values (n,); 1 where they are all the same."""
    spread = values.std(correction=0)
    return torch.where(spread > 1e-12 * values.abs().max(), spread, 1.0)
