"""Rows of any proposal as weighted rows of one theta."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.errors import InputError, MissingGold
from sbi_core.gold import joint_score, log_joint
from sbi_core.seeding import block_seed, seeded
from sbi_core.simulations import Simulations
from sbi_core.simulator import Simulator

PROPOSALS = 64
"""Thetas that stand for the proposal in the weight of a row."""

FEWEST = 50
"""Effective sample size below which weighted rows are refused."""


def is_at(rows: Simulations, theta: Tensor) -> bool:
    """Whether every row was simulated at theta (D,), up to float32 rounding."""
    return bool(torch.isclose(rows.theta, theta.to(rows.theta), rtol=1e-6, atol=0.0).all())


def at_reference(
    rows: Simulations, simulator: Simulator | None, theta_ref: Tensor, *, seed: int
) -> tuple[Simulations, Tensor | None, list[str]]:
    """Rows as if simulated at theta_ref, with their joint score there, weights (N,) of mean 1, and flags.

    Rows that were simulated at theta_ref need no weights (`None`) and no flag; for the others see `weights_at`.

    Args:
        rows: N rows.
        simulator: where gold comes from; rows at theta_ref with a stored joint score need none.
        theta_ref: (D,).
        seed: fixes the weights.

    Raises:
        MissingGold: if nothing gives the joint score at theta_ref.
        InputError: if the effective sample size of the weights is too small.
    """
    at = theta_ref.to(rows.theta)
    moved = at.expand_as(rows.theta)
    here = is_at(rows, at)
    if here and rows.joint_score is not None:
        return replace(rows, theta=moved), None, []
    if simulator is None or not simulator.has_gold:
        raise MissingGold(
            f"the joint score at theta_ref = {at.tolist()} is not stored with these rows, and nothing gives it. "
            f"{_cure(at)}, and pass a simulator that has a log_joint, with rows that kept z."
        )
    weight, flags = None, []
    if not here:
        weight, flag = weights_at(rows, simulator, at, seed=seed)
        flags.append(flag)
    return replace(rows, theta=moved, joint_score=joint_score(simulator, rows, moved)), weight, flags


@torch.no_grad()
def weights_at(rows: Simulations, simulator: Simulator, theta_ref: Tensor, *, seed: int) -> tuple[Tensor, str]:
    """Weights (N,) of mean 1 with which rows of any thetas stand for theta_ref (D,), and what they are worth.

        w = p(x, z | theta_ref) / ((1/K) sum_k p(x, z | theta_k)),

    theta_k the row's own theta and K - 1 draws of the recorded proposal (else of the rows' theta). Given the set of
    thetas each of them is as likely to have made the row, so E[w phi] = E[phi | theta_ref] for every K, and w never
    exceeds K times the ratio to the row's own theta, which has a far larger variance: the balance heuristic of Veach &
    Guibas, SIGGRAPH 1995, section 3.

    Raises:
        InputError: if the effective sample size (sum w)^2 / sum w^2 is below `FEWEST`.
    """
    proposal, size = rows.info.proposal, torch.Size([len(rows)])
    mixture = log_joint(simulator, rows, rows.theta)
    with seeded(block_seed(seed, 4)):
        for _ in range(PROPOSALS - 1):
            if isinstance(proposal, Distribution):
                theta = proposal.sample(size).double()
            else:
                theta = rows.theta[torch.randint(len(rows), size)]
            mixture = torch.logaddexp(mixture, log_joint(simulator, rows, theta))
    log_weight = log_joint(simulator, rows, theta_ref.expand_as(rows.theta)) - mixture
    weight = torch.exp(log_weight - log_weight.max().clamp(min=-1e300))
    effective = float(weight.sum() ** 2 / weight.square().sum()) if bool(weight.any()) else 0.0
    count = f"{len(rows)} rows of other thetas count as {effective:.0f} at theta_ref = {theta_ref.tolist()}"
    if not effective >= FEWEST:
        raise InputError(f"{count} (effective sample size), expected at least {FEWEST}. {_cure(theta_ref)}.")
    return weight / weight.mean(), f"{count}: the effective sample size of their weights"


def _cure(theta: Tensor) -> str:
    return f"Simulate at theta_ref: simulate(simulator, n, proposal={theta.tolist()})"
