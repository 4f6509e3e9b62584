"""Experiments, each seen by every theta of an inner set: means over them, with the errors that both sets bring."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sbi_core.errors import InputError
from sbi_core.simulations import Simulations

Term = Callable[[Tensor, Tensor, int], Tensor]
"""log sum_l p (M,), posterior mean of log p, theta and theta^2 (M, 1 + 2 D), L -> (M,)."""

ENOUGH = 5
"""Experiments for each control variate, below which none are used."""

WORTH = 0.85
"""Control variates are used if their error is less than this part of that without them.

Of two errors that are much the same the smaller is not the better: it is rather the one found too small.
"""


@dataclass(frozen=True)
class Rollouts:
    """M experiments and L thetas, in B blocks, of the same belief.

    Attributes:
        theta: what made each experiment, (M, D).
        rows: the experiments.
        own: log p(x_m | theta_m), nats (M,).
        log_sum: log of the sum over a block of p(x_m | theta_l), nats (M, B).
        mean: under weights p(x_m | theta_l) in a block, of log p, theta and theta^2, (M, B, 1 + 2 D).
        log_square: log of the sum over a block of p^2, nats (M, B).
        before: mean of theta and theta^2 over a block, (B, 2 D).
        inner: thetas in all, L.
        evaluations: log densities evaluated.
        seconds: wall time.
    """

    theta: Tensor
    rows: Simulations
    own: Tensor
    log_sum: Tensor
    mean: Tensor
    log_square: Tensor
    before: Tensor
    inner: int
    evaluations: int
    seconds: float

    def without(self, block: int | None = None) -> tuple[Tensor, Tensor, int]:
        """log sum_l p (M,), posterior mean of log p, theta and theta^2 (M, 1 + 2 D), L; one block left out if asked."""
        kept = [b for b in range(self.log_sum.shape[1]) if b != block]
        log_sum = self.log_sum[:, kept]
        whole = log_sum.logsumexp(1)
        weight = (log_sum - whole[:, None]).exp()
        mean = (weight[..., None] * self.mean[:, kept]).nan_to_num().sum(1)
        return whole, mean, self.inner * len(kept) // self.log_sum.shape[1]

    def estimate(
        self, term: Term, *, drawn: bool = True, corrected: bool = False, controlled: bool = False
    ) -> tuple[float, float]:
        """Mean over the experiments of a term, and its standard error, from both sets of thetas.

        The inner set is common to all experiments, so its error does not average out over them: it is found by the
        jackknife over blocks, and added to that of the mean over experiments. Of evenly spread thetas both are rather
        too large. An experiment that a single block explains has no jackknife, and is left at its term.

        Args:
            term: what is averaged.
            drawn: whether the experiments are draws, and not all that there are.
            corrected: whether to take off the bias of order 1 / L, as the jackknife knows it (Quenouille, Biometrika 43
                (1956) 353). Not for bounds, which it would no longer be.
            controlled: whether to take off what the term shares with the posterior means of theta and theta^2, whose
                average over experiments is known: the belief's own, if f is right (see `balance`). Control variates
                with slopes from the same experiments, whose bias is of order 1 / M; not where L is far below M, which
                they make worse. That the slopes depend on the inner set belongs to the error, but not to the bias,
                of which the jackknife would make fifteen times their noise.

        Raises:
            InputError: for a term that is not finite.
        """
        each = term(*self._parts[0])
        if bad := int((~torch.isfinite(each)).sum()):
            raise InputError(
                f"EIG bound: {bad} of {len(each)} terms are not finite. By the log density none of the inner thetas "
                "could have made these x (raise inner), or not even their own."
            )
        left = [torch.where(value.isfinite(), value, each) for value in (term(*part) for part in self._parts[1:])]
        plain = _jackknifed((each, *left), _freedom(len(each), 0), drawn, corrected)
        controls = self.before.shape[1]
        if not controlled or len(each) <= ENOUGH * controls:
            return plain
        slopes = [_slopes(*pair) for pair in zip((each, *left), self._off, strict=True)]
        fixed, free = (
            [value - off @ slope for value, off, slope in zip((each, *left), self._off, used, strict=True)]
            for used in ([slopes[0]] * len(slopes), slopes)
        )
        freedom = _freedom(len(each), controls)
        better = _jackknifed(fixed, freedom, drawn, corrected)[0], _jackknifed(free, freedom, drawn, corrected)[1]
        return better if better[1] < WORTH * plain[1] else plain

    def balance(self) -> float:
        """p-value of "posterior means of theta and theta^2 average to the belief's own": below 1e-4, f is wrong.

        Hotelling's T^2, as chi-squared, with the errors of both sets of thetas.
        """
        off, left = self._off[0], torch.stack([part.mean(0) for part in self._off[1:]])
        scale = off.std(0).clamp(min=1e-300)
        off, left = off / scale, left / scale
        inner = (len(left) - 1) * torch.cov(left.T, correction=0)
        spread, mean = torch.atleast_2d(torch.cov(off.T) / len(off) + inner), off.mean(0)
        statistic = float(mean @ torch.linalg.pinv(spread, rtol=1e-9, hermitian=True) @ mean)
        return float(torch.special.gammaincc(torch.tensor(off.shape[1] / 2), torch.tensor(statistic / 2)))

    @cached_property
    def _parts(self) -> list[tuple[Tensor, Tensor, int]]:
        """`without` no block, and each."""
        return [self.without(block) for block in (None, *range(len(self.before)))]

    @cached_property
    def _off(self) -> list[Tensor]:
        """Posterior means of theta and theta^2 less those of the belief, (M, 2 D), without no block, and each."""
        before = [self.before.mean(0), *((self.before.sum(0) - self.before) / (len(self.before) - 1))]
        return [part[1][:, 1:] - mean for part, mean in zip(self._parts, before, strict=True)]

    def effective(self) -> float:
        """How many thetas of the inner set matter to an experiment, in the harmonic mean: (sum p)^2 / sum p^2.

        One over it is what the bias of posteriors goes with (Kong, Liu & Wong, JASA 89 (1994) 278).
        """
        return float(1 / (self.log_square.logsumexp(1) - 2 * self.log_sum.logsumexp(1)).exp().mean())


def _jackknifed(values: Sequence[Tensor], freedom: float, drawn: bool, corrected: bool) -> tuple[float, float]:
    """Mean and error of values (M,), in all, and without each block; `freedom` is that of their sum of squares."""
    value, *left = (each.mean() for each in values)
    means = torch.stack(left)
    bias = (len(left) - 1) * (means.mean() - value)
    inner = (len(left) - 1) * means.var(correction=0)
    outer = (values[0] - value).square().sum() / (len(values[0]) * freedom) if drawn else torch.zeros_like(inner)
    return float(value - bias if corrected else value), float((outer + inner).sqrt())


def _slopes(value: Tensor, off: Tensor) -> Tensor:
    """Regression of values (M,) on controls (M, C), as (C,)."""
    scale = off.std(0).clamp(min=1e-300)
    centred = (off - off.mean(0)) / scale
    found: Tensor = torch.linalg.lstsq(centred, (value - value.mean())[:, None], driver="gelsd").solution[:, 0]
    return found / scale


def _freedom(n: int, controls: int) -> float:
    """n - 1, less what slopes of C controls from the same n values cost: n - C - 1, and (n - C - 2) / (n - 2) of it.

    Lavenberg & Welch, Management Science 27 (1981) 322.
    """
    return (n - controls - 1) * (n - controls - 2) / (n - 2) if controls else n - 1
