"""The Neyman construction: which psi would not be surprised by the observation, judged by toys at each."""

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from sbi_core.errors import InputError
from sbi_core.inference.frequentist.toys import Plan, Statistics, toy_statistics

SAME, ROOT_SAME = 1e-4, 1e-3
"""Values of q, and of its root, that are closer than this are ties: maxima are not found more exactly."""

BLOCK = 250
"""Toys at each point in one round; time is looked at between rounds."""


@dataclass(frozen=True)
class Belt:
    """Toys at G points.

    Attributes:
        theta: where they were made, (G, D).
        q: likelihood ratio of the point to the best fit of each toy, (G, T).
        estimate: best fit of the parameters of interest, (G, T, k).
        central: whether points are judged by equal tails of the signed root of q, not by large q.
        of: columns of the parameters of interest.
    """

    theta: Tensor
    q: Tensor
    estimate: Tensor
    central: bool
    of: tuple[int, ...]

    @property
    def toys(self) -> int:
        """How many at each point."""
        return self.q.shape[1]

    @property
    def statistic(self) -> Tensor:
        """What is compared with the observation's, (G, T): q, or its signed root."""
        return signed(self.q, self.estimate, self.theta[:, list(self.of)]) if self.central else self.q

    def critical(self, level: float) -> tuple[Tensor, Tensor]:
        """The ends of the acceptance region of the statistic, (G, 2), and their Monte Carlo errors (G, 2).

        Order statistics, chosen so that with the observation's they hold `level` at least.
        """
        ordered = self.statistic.sort(1).values
        if not self.central:
            value, error = order_statistic(ordered, level)
            return torch.stack([torch.full_like(value, -torch.inf), value + SAME], 1), torch.stack(
                [0 * error, error], 1
            )
        high, high_error = order_statistic(ordered, (1 + level) / 2)
        low, low_error = order_statistic(-ordered.flip(1), (1 + level) / 2)
        return torch.stack([-low - ROOT_SAME, high + ROOT_SAME], 1), torch.stack([low_error, high_error], 1)

    def p_value(self, observed: Tensor, draw: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Probability of a statistic as far out as the observed one, and its Monte Carlo error.

        (1 + number of toys at or beyond) / (1 + toys), which is never too small; with `draw` from a uniform
        distribution, ties and the one count by that share, and p is exactly uniform if the point is true.

        Args:
            observed: (G, N).
            draw: (G, N).

        Returns:
            (G, N) each.
        """
        ordered, n = self.statistic.sort(1).values, self.toys
        close = ROOT_SAME if self.central else SAME
        below = torch.searchsorted(ordered, observed - close).double()
        above = n - torch.searchsorted(ordered, observed + close, right=True).double()
        ties = n - below - above
        share = torch.ones_like(observed) if draw is None else draw
        p = (above + share * (ties + 1)) / (n + 1)
        if self.central:
            other = (below + (1 - share if draw is not None else share) * (ties + 1)) / (n + 1)
            p = (2 * torch.minimum(p, other)).clamp(max=1.0)
        return p, (p * (1 - p) / n).sqrt()


def signed(q: Tensor, estimate: Tensor, psi: Tensor) -> Tensor:
    """Root of q (G, T), negative where the estimate (G, T, k) of the first parameter lies below psi (G, k)."""
    return q.sqrt() * torch.where(estimate[..., 0] < psi[:, :1], -1.0, 1.0)


def order_statistic(ordered: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """The value (G,) that `level` of T sorted ones (G, T) lie at or below, counting one more, and its error (G,).

    The error is half the distance between the order statistics one binomial standard deviation to both sides. With
    fewer than level / (1 - level) values it is infinite.
    """
    n = ordered.shape[1]
    k = math.ceil((n + 1) * level - 1e-9)  # not one more where rounding alone makes it so
    if k > n:
        return torch.full_like(ordered[:, 0], torch.inf), torch.full_like(ordered[:, 0], torch.nan)
    off = math.sqrt(n * level * (1 - level))
    high, low = min(n, math.ceil(k + off)), max(1, math.floor(k - off))
    return ordered[:, k - 1], (ordered[:, high - 1] - ordered[:, low - 1]) / max(high - low, 1) * off


def belt(
    plan: Plan, theta: Tensor, toys: int, *, central: bool, time_limit: float, block: int = BLOCK
) -> tuple[Belt, list[str]]:
    """Toys at each theta (G, D), from torch's global random state, and what must be said about them.

    Raises:
        InputError: if not even one round fits into the time.
    """
    plan.check()
    started, found, flags = time.monotonic(), list[list[Statistics]](), list[str]()
    done = 0
    while done < toys:
        size, row = min(block, toys - done), []
        for point in theta:
            row.append(toy_statistics(plan, point, size))
            if not found and time.monotonic() - started > time_limit:
                raise InputError(
                    f"toys: {size} of them at {len(row)} of {len(theta)} points took {time_limit:g} s. "
                    "Raise time_limit, or lower points."
                )
        found.append(row)
        done += size
        spent = time.monotonic() - started
        if done < toys and spent * (1 + size / done) > time_limit:
            flags.append(f"the time limit of {time_limit:g} s ended the toys after {done} of {toys} at each point")
            break
    q = torch.stack([torch.cat([row[g].q for row in found]) for g in range(len(theta))])
    estimate = torch.stack([torch.cat([row[g].estimate for row in found]) for g in range(len(theta))])
    return Belt(theta, q, estimate, central, plan.of), flags
