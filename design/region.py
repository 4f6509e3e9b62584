"""Where posteriors of one observation lie and where they differ: weighted points of the prior, and its truncation."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.design.belief import EDGE, from_unit, points, unit_points
from sbi_core.errors import InputError
from sbi_core.inference.trainings import mixed
from sbi_core.seeding import derived_seed, one_thread

Look = Callable[[Tensor], Tensor]
"""theta (G, D) -> log likelihood of x_obs by each of M estimators, nats up to a constant of each, (M, G)."""

Box = tuple[Tensor, Tensor]
"""Least and largest quantile along each axis, (D,) each."""

ZOOMS, STAY = 12, 8
"""How often the points are drawn anew where the posterior is, at most; each time at least one in so many stays."""

MARGIN = 0.1
"""Of the box's width, by which it is wider on each side than the points it was laid around."""

TRIED, AT_ONCE = 2**21, 2**18
"""Points of the box that are tried for those inside the region, at most, and at most together."""

OUTSIDE = 10**6
"""Stream of the random points outside a region."""

SPARE = 0.1
"""Of epsilon, that may be where points are few: one of these stands for much, and must not be at the threshold."""

ROUNDING = 1e-5
"""Nats by which a threshold is lower, so that a theta is inside in whatever batch it is asked for."""

BAND = 10.0
"""The edge of a region is where the last so many epsilon of its posterior were."""


@dataclass(frozen=True)
class Cloud:
    """Points that stand for the prior, closest where it matters.

    Attributes:
        theta: (C, D).
        mass: prior probability that each stands for, (C,); the sum is 1.
        unit: their places in the unit cube of quantiles, (C, D); `None` where these are not known.
    """

    theta: Tensor
    mass: Tensor
    unit: Tensor | None = None

    def __getitem__(self, index: Any) -> "Cloud":
        """Some of the points, with the masses they have."""
        return Cloud(self.theta[index], self.mass[index], None if self.unit is None else self.unit[index])


@dataclass(frozen=True)
class Region:
    """The thetas where mean_m p_m(theta | x_obs) / prior(theta) is at least a threshold.

    Of all regions with as much posterior mass, this one has the least prior mass, so it costs the fewest simulations.
    Miller, Cole, Forré, Louppe & Weniger, arXiv:2107.01214; Deistler, Gonçalves & Macke, arXiv:2210.04815.

    Attributes:
        mass: its prior probability.
        epsilon: posterior mass that is left outside.
    """

    prior: Distribution
    look: Look
    log_evidence: Tensor
    level: float
    inner: float
    box: Box | None
    mass: float
    epsilon: float

    def log_density(self, theta: Tensor) -> Tensor:
        """Log of the mean over estimators of posterior over prior density, theta (G, D), nats (G,)."""
        return mixed(looked(self.look, theta) - self.log_evidence[:, None])

    def contains(self, theta: Tensor) -> Tensor:
        """Whether theta (G, D) is inside, (G,)."""
        return (self.log_density(theta) >= self.level) & self.prior.log_prob(theta).isfinite()

    def within(self, cloud: Cloud) -> Tensor:
        """Whether points are inside, and inside the box that is searched, (C,)."""
        found = self.contains(cloud.theta)
        if self.box is not None and cloud.unit is not None:
            found = found & ((cloud.unit >= self.box[0]) & (cloud.unit <= self.box[1])).all(1)
        return found

    def sample(self, n: int, seed: int) -> Cloud:
        """At most n points of the prior inside, found by trying those in the box; their masses add up to the region's.

        Raises:
            InputError: if none of `TRIED` thetas is inside.
        """
        kept: list[Cloud] = []
        found = tried = 0
        while found < n and tried < TRIED:
            wanted = int(1.2 * (n - found + 10) * tried / max(found, 1))
            size = min(AT_ONCE, wanted) if tried else 4 * n
            batch = _of_prior(self.prior, size, seed, len(kept), self.box)
            kept.append(batch[self.contains(batch.theta)])
            found, tried = found + len(kept[-1].theta), tried + size
        if not found:
            raise InputError(f"epsilon = {self.epsilon:g}: none of {tried} thetas is inside the region. Raise it.")
        cloud = _joined(kept)[: min(n, found)]
        volume = 1.0 if self.box is None else float((self.box[1] - self.box[0]).prod())
        share = torch.tensor(volume * found / tried, dtype=torch.float64)
        return replace(cloud, mass=(share / len(cloud.theta)).expand(len(cloud.theta)))


def looked(look: Look, theta: Tensor) -> Tensor:
    """Log likelihoods (M, G) at theta (G, D), float64.

    Raises:
        InputError: if one is NaN.
    """
    with torch.no_grad(), one_thread():
        value = look(theta).double()
    if bool(value.isnan().any()):
        raise InputError(f"log likelihood of x_obs: NaN at {int(value.isnan().sum())} of {value.numel()} thetas.")
    return value


def relative(value: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """Log of posterior over prior density (*, C), of log likelihoods (*, C) at points of these masses; evidences (*).

    Raises:
        InputError: if an evidence is zero or infinite.
    """
    log_evidence = (value + mass.log()).logsumexp(-1)
    if not bool(log_evidence.isfinite().all()):
        raise InputError("log likelihood of x_obs: minus infinity at all thetas of the prior, or infinite at some.")
    return value - log_evidence[..., None], log_evidence


def disagreement(density: Tensor) -> Tensor:
    """Where M posteriors differ: half the mean over them of |w_m - mean w|, w = posterior over prior (M, *), as (*).

    Its mean over the prior is the mean total variation, from 0 to 1, between one posterior and the mixture of all.
    Terms without theta do not count, nor do thetas that none of them believes in. Averaged over x of the prior
    predictive instead, it is at each theta the total variation between their densities of x.
    """
    return (density - density.mean(0)).abs().mean(0) / 2


def survey(prior: Distribution, look: Look, n: int, epsilon: float, seed: int) -> tuple[Cloud, Tensor, Region]:
    """Points of the prior, drawn anew until enough of them are where the posterior is.

    Args:
        prior: event shape (D,).
        look: log likelihoods of M estimators.
        n: points.
        epsilon: posterior mass left outside the region.
        seed: fixes them.

    Returns:
        The points, posterior over prior density there by each estimator (M, C), and the region without epsilon.
    """
    cloud = _of_prior(prior, n, seed, OUTSIDE)
    for zoom in range(1, ZOOMS + 1):
        each, log_evidence = relative(looked(look, cloud.theta), cloud.mass)
        cut = partial(_cut, prior, look, cloud, mixed(each), log_evidence)
        region = cut(SPARE * epsilon, n // STAY)
        if zoom == ZOOMS or int((mixed(each) >= region.level).sum()) >= n // 4:
            break
        cloud = _together(region, n, derived_seed(seed, zoom))
    return cloud, each.exp(), cut(epsilon, 1)


def edge(region: Region, cloud: Cloud, density: Tensor) -> float:
    """Mass that a posterior has outside a region or in its edge: `BAND` epsilon if it is the one the region is of.

    Args:
        region: laid around an earlier posterior.
        cloud: points of the prior.
        density: posterior over prior there, (C,).
    """
    beyond = region.log_density(cloud.theta) < region.inner
    return float((cloud.mass * density)[beyond].sum())


def _of_prior(prior: Distribution, n: int, seed: int, stream: int, box: Box | None = None) -> Cloud:
    """Points of the prior, or of the part of it in a box of the unit cube; their masses add up to 1."""
    mass = torch.full((n,), 1 / n, dtype=torch.float64)
    quantiles = from_unit(prior)
    if quantiles is None:
        return Cloud(points(prior, n, seed, stream), mass)
    unit = unit_points(prior.event_shape[0], n, seed, stream)
    if box is not None:
        unit = (box[0] + (box[1] - box[0]) * unit).clamp(EDGE, 1 - EDGE)
    return Cloud(quantiles(unit.clone()).double(), mass, unit)


def _cut(
    prior: Distribution, look: Look, cloud: Cloud, log_density: Tensor, log_evidence: Tensor, epsilon: float, least: int
) -> Region:
    """The region with all but epsilon of the posterior (C,), or more of it if fewer points than `least` are inside."""
    order = log_density.argsort(descending=True)
    held = (cloud.mass * log_density.exp())[order].cumsum(0)
    held = held / held[-1]
    last = max(int((held < 1 - epsilon).sum()), least - 1)
    inner = int((held < 1 - min(0.5, BAND * epsilon)).sum())
    most = int(log_density.isfinite().sum()) - 1
    level, inner_level = (float(log_density[order[min(k, most)]]) - ROUNDING for k in (last, inner))
    inside = log_density >= level
    box = None
    if cloud.unit is not None:
        low, high = cloud.unit[inside].amin(0), cloud.unit[inside].amax(0)
        width = (high - low).clamp(min=1e-12)
        box = (low - MARGIN * width).clamp(0, 1), (high + MARGIN * width).clamp(0, 1)
    return Region(prior, look, log_evidence, level, inner_level, box, float(cloud.mass[inside].sum()), epsilon)


def _together(region: Region, n: int, seed: int) -> Cloud:
    """n points: half of them, or fewer if few are found, inside a region, the others outside it."""
    inside, everywhere = region.sample(n // 2, seed), _of_prior(region.prior, n - n // 2, seed, OUTSIDE)
    others = everywhere[~region.within(everywhere)]
    share = float(inside.mass.sum())
    if not len(others.mass):
        return replace(inside, mass=inside.mass / share)
    return _joined([inside, replace(others, mass=others.mass * (1 - share) / others.mass.sum())])


def _joined(parts: list[Cloud]) -> Cloud:
    units = [part.unit for part in parts if part.unit is not None]
    theta, mass = torch.cat([part.theta for part in parts]), torch.cat([part.mass for part in parts])
    return Cloud(theta, mass, torch.cat(units) if units else None)
