"""Thetas where the posterior of each experiment is, weighted as if they were of the belief.

Of L thetas of the belief only some L e^-gain matter to one experiment, fewer where there are many parameters. So half
are of the belief, and tell where the posterior is; half are drawn there. Both are weighted by the density of the
belief over that of the mixture they are drawn of (the balance heuristic of Veach & Guibas, SIGGRAPH 95, 419),

    w(theta) = p(theta) / (a p(theta) + (1 - a) q(theta | x)),    a = share of the belief,

which is at most 1 / a: where q is far from the posterior, the thetas of the belief remain.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.design.belief import EDGE, from_unit, unit_points
from sbi_core.seeding import block_seed

MANY = 2**14
"""Thetas whose means of theta and theta^2 are those of the belief; no density is evaluated at them."""

COOLER, OFTEN = 0.8, 60
"""Factor by which log p is scaled down until enough thetas tell a posterior's covariance, and how often at most."""


@dataclass(frozen=True)
class Near:
    """What to draw near experiments, and with which weights.

    All is done in coordinates u in which the belief is N(0, I), its quantiles; q is a normal distribution there, with a
    mean for each experiment and one covariance for all.

    Attributes:
        prior: the belief, of known quantiles.
        spread: thetas of the belief that see all experiments, L.
        drawn: thetas near each experiment, L'.
        seed: fixes all.
    """

    prior: Distribution
    spread: int
    drawn: int
    seed: int

    @cached_property
    def belief(self) -> Tensor:
        """Many thetas of the belief, (MANY, D)."""
        return self._theta(unit_points(self._dims, MANY, self.seed, 3))

    def __call__(self, value: Tensor, index: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Thetas (m, L', D) near experiments number index (m,), of which log p (m, L) at the belief's is known.

        Also the log weights of those of the belief, (m, L), and of these, (m, L').
        """
        u = torch.special.ndtri(unit_points(self._dims, self.spread, self.seed, 1))
        centre, scale, factor = _normal(value, u)
        step = torch.special.ndtri(self._shifted(index))
        new = centre[:, None] + scale * (step @ factor.mT)
        back = torch.linalg.solve_triangular(factor, ((u - centre[:, None]) / scale).mT, upper=False).mT
        level = (factor.diagonal().log().sum() + self._dims * scale.log())[..., 0]
        old, near = (0.5 * (at.square() - by.square()).sum(-1) - level for at, by in ((u, back), (new, step)))
        return self._theta(torch.special.ndtr(new)), (self._log_weight(old), self._log_weight(near))

    def _shifted(self, index: Tensor) -> Tensor:
        """Points of the unit cube (m, L', D), evenly spread for each experiment, and shifted from one to the next."""
        count = int(index.max()) + 1
        generator = torch.Generator().manual_seed(int(block_seed(self.seed, 5).generate_state(1)[0]))
        shift = torch.rand((count, 1, self._dims), dtype=torch.float64, generator=generator)[index]
        return ((unit_points(self._dims, self.drawn, self.seed, 4) + shift) % 1).clamp(EDGE, 1 - EDGE)

    def _log_weight(self, log_ratio: Tensor) -> Tensor:
        """log w of thetas whose log q / p is known."""
        share = self.spread / (self.spread + self.drawn)
        return -torch.logaddexp(torch.full_like(log_ratio, math.log(share)), log_ratio + math.log1p(-share))

    def _theta(self, unit: Tensor) -> Tensor:
        with_quantiles = from_unit(self.prior)
        found: Tensor = with_quantiles(unit.clamp(EDGE, 1 - EDGE)).to(torch.float64)
        return found

    @property
    def _dims(self) -> int:
        return self.prior.event_shape[0]


def _normal(value: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q from log p (m, L) at u (L, D): means (m, D), scales (m, 1, 1) and a Cholesky factor (D, D) common to all.

    With s = sum of the squared weights, a covariance is found too small by the factor 1 - s, and a mean is off by a
    part s of it. Where fewer than 2 (D + 1) thetas matter, log p is cooled, and q is wider than the posterior.
    """
    dims = u.shape[1]
    for power in range(OFTEN):
        weight = (COOLER**power * value).softmax(1).nan_to_num(1 / len(u))
        s = weight.square().sum(1)
        if s.mean() * 2 * (dims + 1) <= 1:
            break
    mean = weight @ u
    one = torch.eye(dims).to(u)
    if (1 - s).sum() < 1e-3:  # a single theta tells no width
        return mean, torch.ones_like(s)[:, None, None], one
    within = ((weight.sum(0)[:, None] * u).mT @ u - mean.mT @ mean) / (1 - s).sum()
    return mean, (1 + s).sqrt()[:, None, None], torch.linalg.cholesky(within + 1e-12 * one)
