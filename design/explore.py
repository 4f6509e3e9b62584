"""Where trainings disagree: thetas of the prior, weighed by how far the members' posteriors lie apart there."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.design.belief import points
from sbi_core.design.readers import reader
from sbi_core.design.region import Cloud, Region, disagreement, relative, survey
from sbi_core.estimators import Ensemble
from sbi_core.inference.trainings import Trainings, trainings
from sbi_core.seeding import derived_seed, one_thread, seeded
from sbi_core.simulations import Simulations

CANDIDATES, EACH = 8192, 8
"""Thetas that are looked at for x_obs by default: so many, and so many for each simulation that is wanted in all."""

FEW = 50.0
"""Thetas that matter to a posterior below which the search for them is said to be coarse."""

SEEN, AMONG = 256, 2048
"""Without x_obs: simulated x at which members are compared, and thetas at which they are."""

LEAST_SEEN, PAIRS = 32, 2**22
"""Where many are to be chosen, fewer x: at least so many, and so many pairs of x and theta in all."""

AT_ONCE = 100_000
"""Pairs of these that are evaluated together."""

SURVEYED = 1e-3
"""Posterior mass that may lie outside the region where thetas are closest, where nothing is truncated."""

LEAST = 1e-6
"""Share of a choice that ignores the disagreement, so that it never lacks thetas."""


@dataclass(frozen=True)
class Explored:
    """Thetas of the prior, and what the members of an ensemble say there.

    Attributes:
        cloud: the points, (C, D).
        density: posterior over prior by each of M members for each of X observations, (M, X, C).
        region: what thetas are restricted to; `None` for no truncation.
        rows: the X simulated observations; `None` for x_obs.
    """

    cloud: Cloud
    density: Tensor
    region: Region | None = None
    rows: Simulations | None = None

    @property
    def apart(self) -> Tensor:
        """Total variation between each member's posterior and the mixture of all, mean over x, (M,)."""
        off = (self.density - self.density.mean(0)).abs().mean(1)
        return (self.cloud.mass * off).sum(1) / 2

    @property
    def effective(self) -> float:
        """About how many thetas matter, (sum of p)^2 / sum of p^2 of the mixture's posterior; the least over x."""
        mass = self.cloud.mass * self.density.mean(0)
        return float((mass.sum(1) ** 2 / mass.square().sum(1)).min())

    def weight(self, exponent: float) -> Tensor:
        """Probabilities (C,) proportional to mass times disagreement^exponent, which is averaged over x.

        Thetas outside the region have none, all others at least `LEAST` of what their mass alone would give.
        """
        evenly = self.cloud.mass
        if self.region is not None:
            evenly = evenly * self.region.contains(self.cloud.theta)
        return _normalised(evenly * disagreement(self.density).mean(0) ** exponent, evenly)

    def weights(self, exponent: float) -> Tensor:
        """Probabilities (X, C) of x and theta together, proportional to mass times disagreement^exponent of the two."""
        off = disagreement(self.density)
        evenly = self.cloud.mass.expand(off.shape)
        return _normalised(evenly * off**exponent, evenly)


def _normalised(wanted: Tensor, evenly: Tensor) -> Tensor:
    total, evenly = wanted.sum(), evenly / evenly.sum()
    return LEAST * evenly + (1 - LEAST) * (wanted / total if total > 0 else evenly)


def at_x_obs(
    ensemble: Ensemble,
    prior: Distribution,
    x_obs: Any,
    observed: Mapping[str, Any],
    epsilon: float | None,
    candidates: int,
    seed: int,
) -> Explored:
    """Look for thetas where the members' posteriors of x_obs are and differ.

    Args:
        ensemble: of trained members.
        prior: event shape (D,).
        x_obs: as `infer` takes it, with `observed`: design, n_events, iid.
        observed: see x_obs.
        epsilon: of the region; `None` for none.
        candidates: how many.
        seed: fixes the thetas.
    """
    seen = Trainings(ensemble, x_obs, **observed)
    cloud, density, region = survey(
        prior,
        lambda theta: seen.log_likelihood(theta[None]),
        candidates,
        SURVEYED if epsilon is None else epsilon,
        seed,
    )
    return Explored(cloud, density[:, None], None if epsilon is None else region)


def everywhere(ensemble: Ensemble, prior: Distribution, rows: Simulations, n: int, seed: int) -> Explored:
    """Look at thetas of the prior, for n to be chosen, with simulated x of the prior, of which some are taken."""
    among = max(AMONG, EACH * n)
    with seeded(derived_seed(seed, 0)):
        rows = rows[torch.randperm(len(rows))[: max(LEAST_SEEN, min(SEEN, PAIRS // among))]]
    theta, mass = points(prior, among, seed), torch.full((among,), 1 / among, dtype=torch.float64)
    with torch.no_grad(), one_thread():
        looks = [reader(member)(rows) for member in trainings(ensemble)]
        parts = [torch.stack([look(some[None]) for look in looks]) for some in theta.split(AT_ONCE // len(rows))]
        value = torch.cat(parts, 2)
    return Explored(Cloud(theta, mass), relative(value, mass)[0].exp(), rows=rows)
