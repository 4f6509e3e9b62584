"""Prior times likelihood in coordinates without bounds, with its slope: what the samplers read."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution, biject_to


@dataclass(frozen=True)
class Points:
    """Points u of R problems and what the target is there.

    Attributes:
        u: (R, C, D).
        before: log prior density of u, nats (R, C).
        value: log likelihood, nats (R, C).
        slope: gradient of before + heat * value, (R, C, D), at the heat that was asked.
    """

    u: Tensor
    before: Tensor
    value: Tensor
    slope: Tensor

    def take(self, index: Tensor) -> "Points":
        """The points index (R, n) of each problem."""
        wide = index[..., None].expand(*index.shape, self.u.shape[-1])
        columns = (self.u.gather(1, wide), self.before.gather(1, index), self.value.gather(1, index))
        return Points(*columns, self.slope.gather(1, wide))

    def where(self, accepted: Tensor, other: "Points") -> "Points":
        """The other's points where accepted (R, C), else these."""
        wide = accepted[..., None]
        return Points(
            torch.where(wide, other.u, self.u),
            torch.where(accepted, other.before, self.before),
            torch.where(accepted, other.value, self.value),
            torch.where(wide, other.slope, self.slope),
        )


class Target:
    """log p(u) = log prior(theta) + heat * log L(theta) + log |d theta / d u|, theta = b(u), b by the prior's support.

    Args:
        prior: event shape (D,), without a batch.
        log_likelihood: theta (R, G, D) -> nats (R, G), differentiable where it can be.
        rows: R.
        at_once: how many thetas of each problem are evaluated together.
    """

    def __init__(
        self, prior: Distribution, log_likelihood: Callable[[Tensor], Tensor], rows: int, at_once: int = 10**6
    ) -> None:
        self.prior, self.rows, self.at_once = prior, rows, at_once
        self._log_likelihood = log_likelihood
        self._bijection = biject_to(prior.support)

    def theta(self, u: Tensor) -> Tensor:
        """theta = b(u), (*, D)."""
        found: Tensor = self._bijection(u)
        return found

    @torch.no_grad()
    def log_density(self, theta: Tensor) -> Tensor:
        """log prior + log L, nats (R, G), at theta (R, G, D)."""
        parts = [self.prior.log_prob(part) + self._log_likelihood(part) for part in theta.split(self.at_once, 1)]
        return torch.cat(parts, 1)

    def draw(self, n: int) -> Tensor:
        """n draws of the prior for each problem, as u (R, n, D), from torch's global random state."""
        theta = self.prior.sample(torch.Size([self.rows, n])).double()
        drawn: Tensor = self._bijection.inv(theta)
        return drawn

    def __call__(self, u: Tensor, heat: Tensor | float = 1.0) -> Points:
        """What the target is at u (R, C, D) for each problem's heat (R, 1)."""
        parts = [self._part(part, heat) for part in u.split(self.at_once, 1)]
        if len(parts) == 1:
            return parts[0]
        return Points(*(torch.cat([getattr(p, name) for p in parts], 1) for name in ("u", "before", "value", "slope")))

    def _part(self, u: Tensor, heat: Tensor | float) -> Points:
        u = u.detach().requires_grad_()
        with torch.enable_grad():
            theta = self._bijection(u)
            jacobian = self._bijection.log_abs_det_jacobian(u, theta)
            before = self.prior.log_prob(theta) + jacobian
            value = self._log_likelihood(theta)
            (slope,) = torch.autograd.grad((before + heat * value).sum(), u)
        before, value = (found.detach().nan_to_num(-torch.inf, -torch.inf, -torch.inf) for found in (before, value))
        return Points(u.detach(), before, value, slope.nan_to_num(0.0, 0.0, 0.0))
