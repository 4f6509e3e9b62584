"""Quick looks at designs, and the bound for black boxes: Fisher information of scores, and a posterior flow."""

import math
import time
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.design.belief import points
from sbi_core.design.gain import LOWER, NONE, Gain
from sbi_core.design.readers import of_runs
from sbi_core.design.rollouts import experiments
from sbi_core.errors import InputError
from sbi_core.gold import joint_score
from sbi_core.simulations import Simulations
from sbi_core.simulator import Simulator

SPREAD = 4096
"""Thetas that the covariance of a belief is measured with."""


def fisher_screen(
    simulator: Simulator,
    prior: Distribution,
    design: Any = None,
    *,
    estimator: Any = None,
    n: int = 64,
    each: int = 64,
    seed: int = 0,
) -> Gain:
    """1/2 E log det(1 + I(theta) V), V the covariance of the belief and I the Fisher information: cheap, and no bound.

    I(theta) is the mean of t t^T over simulations at theta. t is the joint score, whose information is that of x and
    the latents, or the score of an estimator. Exact for linear-Gaussian worlds; where posteriors are far from normal,
    as that of one event often is, it may rank designs wrongly.

    Args:
        simulator: with `log_joint`, unless an estimator is given; `Events` for runs, whose scores add up.
        prior: the belief, event shape (D,).
        design: (K,), or `None` for the simulator's own.
        estimator: anything with `observe`, whose gradient in theta is the score.
        n: thetas of the belief.
        each: simulations at each theta; at least ten times D, or the matrices are too noisy.
        seed: fixes all.

    Raises:
        MissingGold: if there is neither gold nor an estimator.
        InputError: for too few simulations at each theta.
    """
    dims = len(simulator.parameters)
    if n < 2 or each < 10 * dims:
        raise InputError(f"n = {n}, each = {each}: expected at least 2 and {10 * dims}.")
    started = time.monotonic()
    rows = experiments(simulator, points(prior, n, seed).repeat_interleave(each, 0), design, seed)
    score = joint_score(simulator, rows) if estimator is None else _score(of_runs(estimator, simulator), rows)
    if not bool(score.isfinite().all()):
        raise InputError("EIG: a score is not finite.")
    root = _root(torch.cov(points(prior, SPREAD, seed, 1).T).reshape(dims, dims))
    seen = score.unflatten(0, (n, each)) @ root
    value = 0.5 * torch.linalg.slogdet(torch.eye(dims).double() + seen.mT @ seen / each)[1]
    flags = ("EIG from Fisher information: a normal approximation, and no bound.",)
    return Gain(
        float(value.mean()),
        float(value.std() / math.sqrt(n)),
        NONE,
        "Fisher screen",
        simulations=n * each,
        seconds=time.monotonic() - started,
        flags=flags,
    )


def barber_agakov(
    estimator: Any, simulator: Simulator, prior: Distribution, design: Any = None, *, n: int = 1024, seed: int = 0
) -> Gain:
    """E[log q(theta | x, design) - log p(theta)]: a lower bound for any normalised q, and no likelihood is needed.

    Barber & Agakov, NIPS 2003; Foster et al., arXiv:1903.05480, eq. 7 ("variational posterior").

    Args:
        estimator: a `PosteriorEstimator`, of runs if the simulator makes runs.
        simulator: may be a black box.
        prior: the belief, with a density; the bound is loose where q was trained on another.
        design: (K,), or `None` for the simulator's own.
        n: experiments to simulate.
        seed: fixes all.

    Raises:
        InputError: for an estimator that is no density of theta, or a belief without density.
    """
    if not hasattr(estimator, "log_posterior"):
        raise InputError(
            f"barber_agakov needs a density of theta, and {type(estimator).__name__} is none. Train a "
            "PosteriorEstimator."
        )
    if not getattr(prior, "has_density", True):
        raise InputError("barber_agakov needs a belief with a density; these are draws. Use posterior_gain.")
    started = time.monotonic()
    rows = experiments(simulator, points(prior, n, seed), design, seed)
    with torch.no_grad():
        density = estimator.log_posterior(rows.theta, rows.x, rows.design, n_events=rows.n_events)
    each = density.double() - prior.log_prob(rows.theta)
    if not bool(each.isfinite().all()):
        raise InputError(
            f"EIG bound: {int((~each.isfinite()).sum())} of {n} terms are not finite: q is zero, or the belief is, "
            "where theta was drawn."
        )
    error = float(each.std() / math.sqrt(n))
    seconds = time.monotonic() - started
    return Gain(float(each.mean()), error, LOWER, "Barber-Agakov", simulations=n, evaluations=n, seconds=seconds)


def _score(estimator: Any, rows: Simulations) -> Tensor:
    """grad_theta f at each row's own theta, (M, D)."""
    theta = rows.theta.detach().clone().requires_grad_()
    counts = {"n_events": rows.n_events} if getattr(estimator, "needs_n_events", False) else {}
    value = estimator.observe(rows.x, rows.design, **counts)(theta)
    return torch.autograd.grad(value.sum(), theta)[0].double()


def _root(covariance: Tensor) -> Tensor:
    """R (D, D) with R R^T = covariance, which may be singular."""
    size, axes = torch.linalg.eigh(covariance)
    return axes * size.clamp(min=0).sqrt()
