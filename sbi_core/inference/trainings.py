"""The trainings of an ensemble side by side: what is mixed are their posteriors, not their log likelihoods."""

import math
from typing import Any

import torch
from torch import Tensor

from sbi_core.inference.observed import Observed


def trainings(estimator: Any) -> list[Any]:
    """The members of an ensemble, or anything else as the only one."""
    return list(getattr(estimator, "members", ())) or [estimator]


class Trainings:
    """M estimators that look at the same R observations: M * R problems, those of the first, then of the next.

    Args:
        estimator: an ensemble, or one estimator.
        x_obs: as `infer` takes it.
        asked: what else `Observed` takes.

    Attributes:
        each: what each of the M sees.
        axes: of theta.
    """

    def __init__(self, estimator: Any, x_obs: Any, **asked: Any) -> None:
        self.each = [Observed(one, x_obs, **asked) for one in trainings(estimator)]
        self.axes = self.each[0].axes

    @property
    def rows(self) -> int:
        """How many problems there are, M * R."""
        return sum(look.rows for look in self.each)

    @property
    def at_once(self) -> int:
        """How many thetas of each problem to evaluate together."""
        return max(1, self.each[0].at_once // len(self.each))

    @property
    def is_direct(self) -> bool:
        """Whether all are posterior flows that answer this observation by themselves."""
        return all(look.is_direct for look in self.each)

    def __call__(self, theta: Tensor) -> Tensor:
        """Theta (M R, G, D) -> nats (M R, G), with a gradient if theta has one."""
        return torch.cat([look(part) for look, part in zip(self.each, theta.chunk(len(self.each)), strict=True)])

    def direct(self, n: int) -> tuple[Tensor, Tensor]:
        """Draws of the flows' own posteriors q, theta (M R, n, D), and log q there, nats (M R, n)."""
        theta, log_q = zip(*(look.direct(n) for look in self.each), strict=True)
        return torch.cat(theta), torch.cat(log_q)

    def log_likelihood(self, theta: Tensor, *, until: float = math.inf) -> Tensor:
        """The same thetas (R, G, D) for every training -> nats (M R, G); see `Observed.log_likelihood`."""
        return torch.cat([look.log_likelihood(theta, until=until) for look in self.each])


def mixed(log_density: Tensor) -> Tensor:
    """log (1/M) sum_m exp log_density_m, nats (M, *) -> (*)."""
    return log_density[0] if len(log_density) == 1 else log_density.logsumexp(0) - math.log(len(log_density))
