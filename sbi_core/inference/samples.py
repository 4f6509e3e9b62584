"""Posteriors that are known by draws."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

from sbi_core.errors import InputError
from sbi_core.inference.posterior import Posterior
from sbi_core.inference.smoothing import smoothed
from sbi_core.parameters import Parameter
from sbi_core.priors import bounds


class SamplePosterior(Posterior):
    """Draws of a posterior, perhaps weighted, and its density; event shape (D,).

    Args:
        parameters: the D axes of theta.
        draws: chains (C, N, *, D), float64; independent draws are one chain.
        support: where theta may be.
        log_density: theta (*, D) -> nats (*), if it is known, normalised.
        log_weight: of the draws, (C, N, *), any multiple; `None` if all count the same.
        verdicts: what was checked.
        flags: what a careful reader should know.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        draws: Tensor,
        *,
        support: constraints.Constraint,
        log_density: Callable[[Tensor], Tensor] | None = None,
        log_weight: Tensor | None = None,
        verdicts: Mapping[str, str],
        flags: Sequence[str] = (),
    ) -> None:
        self.parameters = tuple(parameters)
        self.draws = draws
        self.verdicts = dict(verdicts)
        self.flags = tuple(flags)
        self.log_weight = log_weight
        self._support, self._log_density = support, log_density
        self.has_density = log_density is not None
        flat = draws.flatten(0, 1)  # (S, *, D)
        weight = torch.zeros(flat.shape[:-1]) if log_weight is None else log_weight.flatten(0, 1)
        self.weight = torch.softmax(weight.double(), 0)
        super().__init__(batch_shape=flat.shape[1:-1], event_shape=flat.shape[-1:], validate_args=False)

    def __repr__(self) -> str:
        chains, n = self.draws.shape[:2]
        return f"SamplePosterior({', '.join(p.name for p in self.parameters)}; {chains} x {n} draws)"

    @property
    def support(self) -> constraints.Constraint:
        """That of the prior."""
        return self._support

    @property
    def mean(self) -> Tensor:
        """Posterior mean, (*, D)."""
        return (self.weight[..., None] * self.draws.flatten(0, 1)).sum(0)

    @property
    def variance(self) -> Tensor:
        """Posterior variance of each parameter, (*, D)."""
        off = self.draws.flatten(0, 1) - self.mean
        return (self.weight[..., None] * off**2).sum(0)

    def _marginal(self, kept: list[int]) -> "SamplePosterior":
        return SamplePosterior(
            [self.parameters[k] for k in kept],
            self.draws[..., kept],
            support=_box(*(end[kept] for end in bounds(self.support, len(self.parameters)))),
            log_weight=self.log_weight,
            verdicts={**self.verdicts, "normalisation": "unchecked: the density of a marginal is not known"},
            flags=self.flags,
        )

    def curve(self, k: int) -> tuple[Tensor, Tensor]:
        """Smoothed density of parameter k: points (G,) and density (G,)."""
        (points,), density = self._smoothed([k], 128)
        return points, density

    def surface(self, j: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """Smoothed joint density of parameters j and k: points (G,), (H,), density (G, H)."""
        (across, up), density = self._smoothed([j, k], 64)
        return across, up, density

    def _smoothed(self, columns: list[int], cells: int) -> tuple[list[Tensor], Tensor]:
        low, high = bounds(self.support, len(self.parameters))
        return smoothed(self.draws.flatten(0, 1)[:, columns], self.weight, low[columns], high[columns], cells)

    @property
    def mode(self) -> Tensor:
        """Where the density is highest, (*, D): uphill from the best draw, by L-BFGS in coordinates without bounds."""
        best = self._best()
        bijection = biject_to(self.support)
        u = bijection.inv(best).clone().requires_grad_()
        optimizer = torch.optim.LBFGS([u], max_iter=100, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

        def closure() -> Tensor:
            optimizer.zero_grad()
            value = -self.log_prob(bijection(u)).sum()
            value.backward()
            return value

        with torch.enable_grad():
            optimizer.step(closure)
        found: Tensor = bijection(u).detach()
        better = (self.log_prob(found) >= self.log_prob(best))[..., None]
        return torch.where(better, found, best)

    def _best(self) -> Tensor:
        """The draw of highest density, (*, D)."""
        flat = self.draws.flatten(0, 1)
        at = self._draw_density().argmax(0)
        return flat.gather(0, at[None, ..., None].expand(1, *flat.shape[1:]))[0]

    def threshold(self, level: float) -> Tensor:
        """Log density, nats (*), above which `level` of the draws lie."""
        value, order = self._draw_density().sort(0, descending=True)
        enough = (self.weight.gather(0, order).cumsum(0) < level).sum(0, keepdim=True).clamp(max=len(value) - 1)
        return value.gather(0, enough)[0]

    @torch.no_grad()
    def _draw_density(self) -> Tensor:
        """Log density of all draws, (S, *)."""
        return torch.cat([self.log_prob(part) for part in self.draws.flatten(0, 1).split(1000)])

    def credible_interval(self, level: float = 0.683) -> tuple[Tensor, Tensor]:
        """Equal-tailed interval of each parameter at a level: ends (*, D)."""
        value, order = self.draws.flatten(0, 1).sort(0)
        weight = self.weight[..., None].expand(value.shape).gather(0, order)
        middle = weight.cumsum(0) - weight / 2
        ends = []
        for tail in ((1 - level) / 2, (1 + level) / 2):
            above = (middle < tail).sum(0, keepdim=True).clamp(1, len(value) - 1)
            left, right = (middle.gather(0, at) for at in (above - 1, above))
            share = ((tail - left) / (right - left).clamp(min=1e-300)).clamp(0, 1)
            ends.append(torch.lerp(value.gather(0, above - 1), value.gather(0, above), share)[0])
        return ends[0], ends[1]

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008  (torch's own signature)
        """Draw (*sample_shape, *, D) of the draws, each as often as it counts; unweighted ones once if they last."""
        flat, n = self.draws.flatten(0, 1), math.prod(sample_shape)
        batch = self.batch_shape
        weight = self.weight.reshape(len(flat), -1).T  # (B, S)
        again = self.log_weight is not None or n > len(flat)
        chosen = torch.multinomial(weight, max(n, 1), replacement=again)[:, :n].T  # (n, B)
        found = flat.reshape(len(flat), -1, flat.shape[-1]).gather(0, chosen[..., None].expand(-1, -1, flat.shape[-1]))
        return found.reshape(*sample_shape, *batch, flat.shape[-1])

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density (nats) at value (*, D), as (*).

        Raises:
            InputError: where the method does not know the density.
        """
        if self._log_density is None:
            raise InputError("the density of this posterior is not known: it has draws only.")
        return self._log_density(value)


def _box(low: Tensor, high: Tensor) -> constraints.Constraint:
    """The support between these ends (D,)."""
    if bool(low.isinf().all() and high.isinf().all()):
        return constraints.real_vector
    return constraints.independent(constraints.interval(low, high), 1)
