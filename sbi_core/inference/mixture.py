"""Mixtures of normals fitted to points: where a posterior is, and in how many places."""

import math

import torch
from torch import Tensor

_TAILS = ((0.8, 1.2), (0.2, 6.0))
"""Weights and inflations of the covariances with which a fitted mixture is drawn from, so that its tails are wider."""


class Mixture:
    """One mixture of K normals for each of R problems, fitted by expectation maximisation.

    What is drawn and valued has wider tails than what was fitted: of each normal .8 with its covariance times 1.2 and
    .2 with its covariance times 6, so that importance weights towards the fitted points stay small.

    Args:
        u: points (R, N, D).
        components: K at most; fewer where there are less than 10 D points for each.
        rounds: of expectation maximisation.
    """

    def __init__(self, u: Tensor, components: int = 8, rounds: int = 40) -> None:
        rows, n, dims = u.shape
        k = max(1, min(components, n // (10 * dims)))
        self.shift, self.factor = centre_and_factor(u)
        white = torch.linalg.solve_triangular(self.factor, (u - self.shift[:, None]).mT, upper=False).mT
        mean = _far_apart(white, k)
        width = torch.eye(dims, dtype=u.dtype).expand(rows, k, dims, dims) * k ** (-2 / dims)
        weight = u.new_full((rows, k), 1 / k)
        for _ in range(rounds if k > 1 else 1):
            share = (_log_normal(white, mean, torch.linalg.cholesky(width)) + weight.log()[:, None]).softmax(-1)
            total = share.sum(1) + 1e-9  # (R, K)
            weight = total / total.sum(-1, keepdim=True)
            mean = torch.einsum("rnk,rnd->rkd", share, white) / total[..., None]
            off = white[:, :, None] - mean[:, None]
            width = torch.einsum("rnk,rnkd,rnke->rkde", share, off, off) / total[..., None, None]
            width = width + 1e-4 * torch.eye(dims, dtype=u.dtype)
        self._mean = torch.cat([mean] * len(_TAILS), 1)
        self._width = torch.linalg.cholesky(torch.cat([width * size for _, size in _TAILS], 1))
        self._log_weight = torch.cat([weight * part for part, _ in _TAILS], 1).log()

    def sample(self, n: int) -> Tensor:
        """Draw (R, n, D) from torch's global random state."""
        rows, _, dims = self._mean.shape
        chosen = torch.multinomial(self._log_weight.exp(), n, replacement=True)  # (R, n)
        row = torch.arange(rows)[:, None]
        noise = torch.randn(rows, n, dims, 1, dtype=self._mean.dtype)
        white = self._mean[row, chosen] + (self._width[row, chosen] @ noise)[..., 0]
        return self.shift[:, None] + white @ self.factor.mT

    def log_prob(self, u: Tensor) -> Tensor:
        """Log density, nats (R, G), at u (R, G, D)."""
        white = torch.linalg.solve_triangular(self.factor, (u - self.shift[:, None]).mT, upper=False).mT
        each = _log_normal(white, self._mean, self._width) + self._log_weight[:, None]
        return each.logsumexp(-1) - self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)[:, None]


def centre_and_factor(u: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (R, D) and lower Cholesky factor (R, D, D) of the covariance of points (R, N, D), always invertible."""
    centre = u.mean(1)
    off = u - centre[:, None]
    spread = off.square().mean(1).sqrt().clamp(min=1e-12)
    white = off / spread[:, None]
    correlation = white.mT @ white / u.shape[1]
    correlation = correlation + 1e-6 * torch.eye(u.shape[2], dtype=u.dtype)
    return centre, spread[..., None] * torch.linalg.cholesky(correlation)


def _far_apart(white: Tensor, k: int) -> Tensor:
    """K points of (R, N, D), each the furthest from those before among a tenth drawn at random, (R, K, D)."""
    rows, n, dims = white.shape
    chosen = white[:, :1]
    for _ in range(k - 1):
        some = torch.randint(n, (rows, max(1, n // 10)))
        points = white.gather(1, some[..., None].expand(-1, -1, dims))
        best = torch.cdist(points, chosen).amin(-1).argmax(1)
        chosen = torch.cat([chosen, points[torch.arange(rows), best][:, None]], 1)
    return chosen


def _log_normal(points: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    """Log density (R, G, K) of points (R, G, D) under K normals with means (R, K, D) and factors (R, K, D, D)."""
    off = points[:, None] - mean[:, :, None]  # (R, K, G, D)
    white = torch.linalg.solve_triangular(factor, off.mT, upper=False)
    volume = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    log_density = -white.square().sum(-2) / 2 - volume[..., None] - points.shape[-1] * math.log(2 * math.pi) / 2
    return log_density.mT
