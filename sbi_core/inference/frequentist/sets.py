"""Log likelihoods of many sets of events at once: what toys are read with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.inference.frequentist.rates import Extended
from sbi_core.inference.observed import auxiliary

DISTINCT = 512
"""Values of x, of one number each, up to which they are counted and each is evaluated once."""

AT_ONCE = 200_000
"""Pairs of theta and x evaluated together."""


@dataclass(frozen=True)
class Toys:
    """R sets of independent events.

    Attributes:
        x: (E, *event).
        index: the set that each event is in, (E,).
        rows: R.
        design: (K,), (E, K) or `None`.
        n_events: for runs of events, (E,).
        weight: what each counts, (E,); one by default.
        shift: how far the auxiliary measurements of each set lie from the observed ones, one (R, ...) each.
    """

    x: Tensor
    index: Tensor
    rows: int
    design: Tensor | None = None
    n_events: Tensor | None = None
    weight: Tensor | None = None
    shift: tuple[Tensor, ...] = field(default=())


class Sets:
    """log L of R sets of independent events at any theta, with the Poisson term and the constraints: a surface.

    Equal events are evaluated once if they take few values.

    Args:
        estimator: anything with `observe`.
        toys: the sets.
        poisson: the term of the number of events, which is the sum of the weights.
        constraints: auxiliary measurements by parameter.
    """

    def __init__(
        self,
        estimator: Any,
        toys: Toys,
        *,
        poisson: Extended | None = None,
        constraints: Mapping[Any, Distribution] | None = None,
    ) -> None:
        self.rows = toys.rows
        axes = getattr(estimator, "axes", None) or estimator.parameters
        self._auxiliary, self._shift, self._poisson = auxiliary(constraints, axes), toys.shift, poisson
        weight = torch.ones(len(toys.x)).double() if toys.weight is None else toys.weight.double()
        self.count = torch.zeros(toys.rows).double().index_add_(0, toys.index, weight)[:, None]
        self._index, self._weight = toys.index, weight
        self._counts: Tensor | None = None
        x, options = toys.x, {}
        if x[:1].numel() == 1 and toys.n_events is None and (toys.design is None or toys.design.ndim == 1):
            value, place = torch.unique(x.flatten(), return_inverse=True)
            if len(value) <= min(DISTINCT, len(x) // 4):
                cell = toys.index * len(value) + place
                counts = torch.zeros(toys.rows * len(value)).double().index_add_(0, cell, weight)
                self._counts = counts.reshape(toys.rows, 1, len(value))
                x = value.reshape(1, 1, len(value), *toys.x.shape[1:])
        design = toys.design
        if self._counts is None:
            x = x[:, None]
            design = design[:, None] if design is not None and design.ndim > 1 else design
            options = {} if toys.n_events is None else {"n_events": toys.n_events[:, None]}
        with torch.no_grad():
            self._look = estimator.observe(x, design, **options)

    @property
    def counted(self) -> bool:
        """Whether x takes few values, so that a theta common to all sets costs no more than a single set does."""
        return self._counts is not None

    @property
    def at_once(self) -> int:
        """How many thetas of each set to evaluate together."""
        return max(1, AT_ONCE // self.pairs)

    @property
    def pairs(self) -> int:
        """Pairs of theta and x in the evaluation of one theta of each set, at least 1."""
        return max(1, len(self._index) if self._counts is None else self._counts.numel())

    def __call__(self, theta: Tensor) -> Tensor:
        """Nats (R, G) at theta (R, G, D), with a gradient if theta has one."""
        if self._counts is not None:
            each = self._look(theta[:, :, None]).double()
            value = torch.where(self._counts > 0, each, 0.0).mul(self._counts).sum(-1)
        else:
            each = self._look(theta[self._index]).double() * self._weight[:, None]
            value = torch.zeros(theta.shape[:2]).double().index_add(0, self._index, each)
        return value + self._rest(theta)

    @torch.no_grad()
    def shared(self, theta: Tensor) -> Tensor:
        """Nats (R, K) of all sets at the same thetas (K, D); -inf where one is impossible."""
        if self._counts is None:
            parts = [self(part) for part in theta.expand(self.rows, *theta.shape).split(self.at_once, 1)]
            return torch.cat(parts, 1).nan_to_num(-torch.inf, -torch.inf, -torch.inf)
        table = self._look(theta[None, :, None])[0].double().nan_to_num(-1e30, -1e30, -1e30)  # 0 * inf is not 0
        value = self._counts[:, 0] @ table.T + self._rest(theta[None])
        return torch.where(value > -1e29, value, -torch.inf)

    @torch.no_grad()
    def error(self, theta: Tensor, best: Tensor) -> Tensor:
        """Standard error of q = 2 [log L(best) - log L(theta)] of a single set, theta (K, D), best (D,), as (K,).

        If the events stand for an expectation: twice their weight times the spread of the difference over the root of
        their number.
        """
        at = torch.cat([best[None], theta])
        if self._counts is None:
            parts = [self._look(part[None].expand(len(self._index), -1, -1)) for part in at.split(self.at_once)]
            each, weight = torch.cat(parts, 1).double().T, self._weight  # (K + 1, E)
            number = float(len(weight))
        else:
            each, weight = self._look(at[None, :, None])[0].double(), self._counts[0, 0]
            number = float(len(self._index))
        total = weight.sum()
        off = torch.where(weight > 0, each[:1] - each[1:], 0.0)
        mean = (off @ weight / total)[:, None]
        variance = (off - mean).square() @ weight / total
        return 2 * total * (variance / number).sqrt()

    def _rest(self, theta: Tensor) -> Tensor | float:
        """What does not depend on the x, nats (R, G)."""
        value: Tensor | float = 0.0 if self._poisson is None else self._poisson(theta, self.count)
        for k, (columns, measured) in enumerate(self._auxiliary):
            at = theta[..., columns]
            value = value + measured.log_prob(at - self._shift[k][:, None] if self._shift else at)
        return value
