"""Thetas of a belief, spread as evenly as its kind allows: gains are averaged over it, never taken at its mode."""

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal
from torch.quasirandom import SobolEngine

from sbi_core.seeding import block_seed, seeded

EDGE = 2.0**-31
"""How close to 0 and 1, where quantiles may be infinite, the unit interval is used: half a step of Sobol points."""


def points(prior: Distribution, n: int, seed: int, stream: int = 0) -> Tensor:
    """n thetas (n, D) of a belief, float64: images of a scrambled Sobol sequence where its quantiles are known.

    Each theta has the belief's distribution, so means over them are unbiased; their errors fall faster than those of
    independent draws (Owen, SIAM J. Numer. Anal. 34 (1997) 1884). Of other distributions they are plain draws.

    Args:
        prior: event shape (D,).
        n: best a power of 2.
        seed: fixes them.
        stream: several sets of one seed.
    """
    if (quantiles := quantiles_of(prior)) is None:
        with seeded(block_seed(seed, stream)):
            return prior.sample(torch.Size([n])).to(torch.float64)
    found: Tensor = quantiles(unit_points(prior.event_shape[0], n, seed, stream)).to(torch.float64)
    return found


def unit_points(dims: int, n: int, seed: int, stream: int = 0) -> Tensor:
    """n points (n, dims) of a scrambled Sobol sequence in the open unit cube, float64."""
    engine = SobolEngine(dims, scramble=True, seed=int(block_seed(seed, stream).generate_state(1)[0]))
    return engine.draw(n, dtype=torch.float64).clamp(EDGE, 1 - EDGE)


def quantiles_of(prior: Distribution):  # type: ignore[no-untyped-def]
    """The map from the unit cube (n, D), overwritten, to theta (n, D) that makes uniform points this prior, or None."""
    if hasattr(prior, "from_unit") and not prior.batch_shape:
        return prior.from_unit
    if isinstance(prior, MultivariateNormal):
        return lambda unit: prior.loc + Normal(0.0, 1.0).icdf(unit) @ prior.scale_tril.mT.to(unit)
    if isinstance(prior, Independent) and prior.base_dist.batch_shape == prior.event_shape:
        try:
            prior.base_dist.icdf(torch.full(prior.event_shape, 0.5, dtype=torch.float64))
        except NotImplementedError:
            return None
        return prior.base_dist.icdf
    return None
