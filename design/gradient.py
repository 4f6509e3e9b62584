"""Uphill in the design: the slope of the information gain, from how likelihoods change with the design."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.design.information import FEW, INNER, OUTER
from sbi_core.design.readers import of_runs, reader
from sbi_core.design.rollouts import roll
from sbi_core.errors import InputError, MissingGold, SbiWarning
from sbi_core.events import Events
from sbi_core.parameters import Parameter, names
from sbi_core.priors import UniformPrior
from sbi_core.seeding import block_seed
from sbi_core.simulations import Simulations
from sbi_core.simulator import Simulator

ROWS = 4_000
"""Rows whose log_joint is differentiated together."""

STEPS, RATE = 100, 0.1
"""Steps of an ascent, and the length of its first one in units of the ranges."""

MEMORY, SQUARES = 0.8, 0.95
"""Shares of the past in the ascent's running means of gradients and of their squares."""

Slope = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""A design (K,) and a seed -> gradient (K,) and its standard errors (K,)."""


def joint_design_score(simulator: Simulator, simulations: Simulations) -> Tensor:
    """Joint design score grad_design log p(x, z | theta, design) of N rows, the latents held fixed, (N, K), float64.

    Per unit of each design. Its mean over z at fixed x is grad_design log p(x | theta, design), and its mean over
    x and z at fixed theta is zero, if what x and z can be does not depend on the design.

    Args:
        simulator: one whose `log_joint` keeps every term with the design.
        simulations: N rows of it, with their designs, and z.

    Raises:
        MissingGold: if the simulator does not say that it keeps them (`design_score`).
        InputError: for rows without designs.
    """
    _check_scores(simulator)
    if (design := simulations.design) is None:
        raise InputError(f"simulations of '{simulator.name}' have no design. Simulate them with design=...")
    parts = []
    for index in torch.arange(len(simulations)).split(ROWS):
        rows = simulations[index]
        leaf = design[index].detach().clone().requires_grad_()
        z = None if rows.z is None else rows.z.double()
        total = simulator.log_joint(rows.theta, rows.x.double(), z, leaf).sum()
        parts.append(torch.autograd.grad(total, leaf)[0] if total.requires_grad else torch.zeros_like(leaf))
    return torch.cat(parts).detach()


def gain_gradient(
    estimator: Any,
    simulator: Simulator,
    prior: Distribution,
    design: Any,
    *,
    n: int = OUTER,
    inner: int = INNER,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Gradient of the expected information gain with respect to the design, nats per unit of each design.

        grad I = E[s (log p(x | theta, design) - log p(x | design))],    s = grad_design log p(x, z | theta, design)

    over theta of the belief and x, z simulated at the design; nothing is differentiated but log p, so x may be whole
    numbers. The gradient of the log ratio itself has mean zero, as densities are normalised, and s may take the place
    of grad_design log p(x | theta, design), its mean over z. As E[s | theta] = 0, products of s with functions of
    theta have mean zero: what a linear regression on them explains is taken off (Greensmith, Bartlett & Baxter, JMLR 5
    (2004) 1471, for a constant). p(x | design) is a mean over `inner` thetas: the bias is of order 1 / inner,
    that of the regression of order 1 / n.

    Args:
        estimator: anything with `observe`, trained at many designs; a simulator that knows its exact likelihood.
        simulator: what is to be run, with `design_score`; `Events` for runs of a number that no design sets.
        prior: the current belief, event shape (D,).
        design: (K,).
        n: experiments to simulate.
        inner: thetas to see each with.
        seed: fixes all.

    Returns:
        The gradient (K,) and its standard errors (K,), of experiments and inner thetas together.

    Raises:
        MissingGold: if the simulator has no design scores.
        InputError: for designs of whole numbers, and what `simulate` refuses.
    """
    _check_scores(simulator)
    _check_smooth(simulator)
    found = roll(reader(of_runs(estimator, simulator)), simulator, prior, design, n=n, inner=inner, seed=seed)
    if (matter := found.effective()) < FEW:
        text = f"gain_gradient: of {found.inner} thetas only {matter:.1f} matter to an experiment. Raise inner."
        warnings.warn(text, SbiWarning, stacklevel=2)
    score = joint_design_score(simulator, found.rows)
    total, _, count = found.without()
    product = score * (found.own - total + math.log(count))[:, None]
    control = _controls(score, found.theta)
    explained = control @ torch.linalg.lstsq(control - control.mean(0), product - product.mean(0), driver="gelsd")[0]

    def slope(axis: int) -> tuple[float, float]:
        return found.estimate(
            lambda log_sum, mean, count: score[:, axis] * (found.own - log_sum + math.log(count)) - explained[:, axis]
        )

    gradient, error = torch.tensor([slope(axis) for axis in range(score.shape[1])], dtype=torch.float64).T
    return gradient, error


def _controls(score: Tensor, theta: Tensor) -> Tensor:
    """Products of mean zero, (N, C): of scores (N, K) with 1, r and r^2, r the ranks of theta (N, D).

    Ranks, unlike theta, have no tails that a regression would run after; of few rows the scores alone.
    """
    n = len(theta)
    ranks = theta.argsort(0).argsort(0).double() / n - 0.5
    powers = torch.cat([torch.ones(n, 1).double(), ranks, ranks**2], 1)
    kept = powers if n > 20 * powers.shape[1] * score.shape[1] else powers[:, :1]
    return (score[:, :, None] * kept[:, None]).flatten(1)


@dataclass(frozen=True)
class Ascent:
    """The way uphill.

    Attributes:
        axes: what the K columns mean.
        path: designs, the start included, (T + 1, K).
        gradients: estimated at all but the last, (T, K).
        errors: their standard errors, (T, K).
    """

    axes: tuple[Parameter, ...]
    path: Tensor
    gradients: Tensor
    errors: Tensor

    @property
    def design(self) -> Tensor:
        """Where it ends: the mean of the last quarter of the path, (K,)."""
        return self.path[-(len(self.path) // 4 + 1) :].mean(0)


def ascend(
    slope: Slope, designs: tuple[Parameter, ...], start: Any, *, steps: int = STEPS, rate: float = RATE, seed: int = 0
) -> Ascent:
    """Climb from a design to a local maximum inside the ranges, along gradients with errors.

    Adam (Kingma & Ba, arXiv:1412.6980) in units of the ranges, its steps falling linearly to zero, projected on the
    box. Each step has a seed of its own, so errors average out along the path.

    Args:
        slope: such as `lambda design, seed: gain_gradient(toy, toy, toy.prior, design, n=256, seed=seed)`.
        designs: K axes of real numbers with finite ranges.
        start: (K,), inside them.
        steps: calls of `slope`.
        rate: length of the first steps, in ranges.
        seed: fixes all.

    Raises:
        InputError: for designs of whole numbers, a start outside the ranges, or a gradient that is not finite.
    """
    _check_real(designs, "ascend")
    prior = UniformPrior(designs)
    design = torch.as_tensor(start, dtype=torch.float64)
    if design.shape != prior.event_shape or not bool(prior.log_prob(design).isfinite()):
        raise InputError(
            f"start = {design.tolist()}: expected one design, ({len(designs)},), inside the ranges of {names(designs)}."
        )
    if steps < 1 or not rate > 0:
        raise InputError(f"steps = {steps}, rate = {rate}: expected at least 1, and a positive number.")
    width = prior.high - prior.low
    mean, square = torch.zeros_like(width), torch.zeros_like(width)
    path, slopes = [design], []
    for step in range(steps):
        gradient, error = slope(design, int(block_seed(seed, step).generate_state(1, np.uint64)[0] >> np.uint64(1)))
        if not bool(gradient.isfinite().all()):
            raise InputError(f"slope is {gradient.tolist()} at {names(designs)} = {design.tolist()}: expected numbers.")
        mean = MEMORY * mean + (1 - MEMORY) * gradient * width
        square = SQUARES * square + (1 - SQUARES) * (gradient * width) ** 2
        ahead = mean / (1 - MEMORY ** (step + 1)) / (square / (1 - SQUARES ** (step + 1))).sqrt().clamp(min=1e-300)
        design = (design + rate * (1 - step / steps) * width * ahead).clamp(prior.low, prior.high)
        path.append(design)
        slopes.append(torch.stack([gradient, error]))
    gradients, errors = torch.stack(slopes, 1)
    return Ascent(tuple(designs), torch.stack(path), gradients, errors)


def _check_scores(simulator: Simulator) -> None:
    if not (simulator.has_gold and simulator.design_score):
        raise MissingGold(
            "design scores need every term of log p(x, z | theta, design) that has the design, and simulator "
            f"'{simulator.name}' does not state design_score = True. Keep them in its log_joint and state it, or use "
            "search, which needs values only."
        )


def _check_smooth(simulator: Simulator) -> None:
    """Refuse designs that p(x, z | theta, design) cannot be differentiated in."""
    _check_real(simulator.designs, f"simulator '{simulator.name}'")
    if isinstance(simulator, Events) and callable(simulator.n):
        raise InputError(
            f"in '{simulator.name}' the number of events is a function of the design, and steps have no gradient. Use "
            "search, which needs values only."
        )


def _check_real(designs: tuple[Parameter, ...], where: str) -> None:
    if whole := [axis.name for axis in designs if axis.integer]:
        raise InputError(
            f"{where}: designs {whole} take whole numbers only, and have no gradient. Use search, which needs values "
            "only."
        )
