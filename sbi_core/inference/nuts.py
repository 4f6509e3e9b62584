"""Pyro's No-U-Turn sampler on the same target: a second opinion, for one observation at a time."""

import time
from typing import Any

import torch
from torch import Tensor

from sbi_core.errors import InputError
from sbi_core.inference.hamilton import PARTICLES, OutOfTime, temper
from sbi_core.inference.sampling import Drawn, judged, log_evidence, of_chains
from sbi_core.inference.target import Target

CHAINS, WARMUP, DRAWS = 4, 100, 500
"""Chains, steps of each in which Pyro adapts, and draws that are kept, by default."""


class _Late(Exception):
    """The time limit came."""


def nuts(target: Target, *, chains: int | None, n: int | None, time_limit: float) -> Drawn:
    """Chains of Pyro's NUTS (Hoffman & Gelman, arXiv:1111.4246), one after the other.

    They start from a tempered population, as those of "hmc" do, in coordinates in which it has unit covariance; unlike
    those they do not jump, so on separated modes they disagree, and say so.

    Args:
        target: of one problem.
        chains: how many, 4 by default.
        n: draws of each, 500 by default.
        time_limit: seconds; what was drawn by then is returned, and says so.

    Raises:
        InputError: for several problems at once, which the members of an ensemble are.
    """
    if target.rows != 1:
        raise InputError("method = 'nuts' serves one observation and one training at a time; method='hmc' serves more.")
    from pyro.infer import MCMC, NUTS

    until, chains = time.monotonic() + time_limit, chains or CHAINS
    points, kernel = temper(target, max(PARTICLES, chains), until)
    shift, factor = kernel.mixture.shift[0], kernel.factor[0]

    def potential(state: dict[str, Tensor]) -> Tensor:
        at = shift + factor @ state["v"]
        return _Slope.apply(at, target)

    kept: list[list[Tensor]] = []

    def collect(_: Any, state: dict[str, Tensor], stage: str, number: int) -> None:
        if stage.startswith("Sample"):
            kept[-1].append(target.theta(shift + factor @ state["v"].detach()))
        if time.monotonic() > until:
            raise _Late

    late = False
    for start in points.u[0, torch.randperm(points.u.shape[1])[:chains]]:
        kept.append([])
        at = {"v": torch.linalg.solve_triangular(factor, (start - shift)[:, None], upper=False)[:, 0]}
        sampler = MCMC(
            NUTS(potential_fn=potential, adapt_mass_matrix=False, jit_compile=False),
            num_samples=n or DRAWS,
            warmup_steps=WARMUP,
            initial_params=at,
            disable_progbar=True,
            hook_fn=collect,
        )
        try:
            sampler.run()
        except _Late:
            late = True
            break
    full = [chain for chain in kept if len(chain) == (n or DRAWS)] or kept[:1]
    if not full[0]:
        raise OutOfTime(f"nuts: the time limit of {time_limit:g} s came before the first draw. Raise time_limit.")
    draws = torch.stack([torch.stack(chain) for chain in full])[:, :, None]  # (C, N, 1, D)
    flags = [f"the time limit of {time_limit:g} s ended it with {len(full)} of {chains} chains"] if late else []
    return of_chains(draws, judged(draws), log_evidence(target, kernel.mixture), flags)


class _Slope(torch.autograd.Function):
    """Minus the log density of one u (D,), whose gradient the target knows already."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, target: Target) -> Tensor:
        at = target(u.detach()[None, None])
        ctx.save_for_backward(at.slope[0, 0])
        return -(at.before + at.value)[0, 0]

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return -above[0] * slope, None
