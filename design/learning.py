"""One estimator for all designs: what information gain is read from where no likelihood is known."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.campaign import simulate
from sbi_core.columns import to_column
from sbi_core.design.belief import points
from sbi_core.design.choice import as_candidates
from sbi_core.design.gain import Gain
from sbi_core.design.information import contrastive
from sbi_core.design.readers import joint_reader, of_runs, reader
from sbi_core.design.rollouts import see
from sbi_core.errors import InputError, MissingGold
from sbi_core.estimators import Fit, LikelihoodEstimator, RatioEstimator, fit, nle, nre, nre_gold
from sbi_core.estimators.estimator import Estimator
from sbi_core.estimators.losses import Batch, needs
from sbi_core.events import Events
from sbi_core.simulations import Simulations
from sbi_core.simulator import Simulator

LABELS = ("auto", "hard", "gold")

HELPS = 0.8
"""Excess information of the latents, nats, above which labels from gold are as noisy as hard ones, and cost more."""

HELD, CONTRASTS = 1000, 256
"""Held-out rows, and thetas to see them with, that certify what was learned."""

STEPS = 5000
"""Of training, where x is a label: such heads are small, and stop by themselves."""


@dataclass(frozen=True)
class Learned:
    """An estimator f(theta, x, design) with its certificate.

    Attributes:
        estimator: of one event, at all designs it was trained on.
        labels: "hard" or "gold".
        certificate: contrastive lower bound of I(theta; x | design) on held-out rows, averaged over their designs.
        excess: I(theta; x, z | design) - I(theta; x | design) by the same rows and contrasts, nats; `None` without
            gold. Where f is not perfect it is too large.
        data: all rows.
        fit: the training.
    """

    estimator: Estimator
    labels: str
    certificate: Gain
    excess: float | None
    data: Simulations
    fit: Fit


def learn(
    simulator: Simulator,
    prior: Distribution,
    n: int,
    *,
    designs: Any = None,
    labels: str = "auto",
    seed: int = 0,
    workers: int = 1,
    **options: Any,
) -> Learned:
    """Simulate n events over designs, and train f(theta, x, design) on them.

    Numbers x train a `RatioEstimator` with `nre`, labels x a `LikelihoodEstimator` with `nle`. Gold replaces the hard
    labels "this theta of K made x" by p(x, z | theta_k) / sum_j p(x, z | theta_j). How noisy these still are is how
    much more z says than x, the excess information: it is read off held-out rows after a training with hard labels,
    and above `HELPS` nats that training is kept.

    Args:
        simulator: one event, or `Events`, of which single events are learned: their log likelihoods add.
        prior: thetas to train at: the belief, or anything wider, event shape (D,).
        n: simulations.
        designs: density of the design, or one design (K,), or several (C, K), which are dealt out in turn; by default
            the simulator's own setting, and the estimator then knows of no other.
        labels: "auto", "hard" or "gold".
        seed: fixes all.
        workers: processes that simulate.
        options: of `fit`.

    Raises:
        InputError: for unknown labels, or designs of another width.
        MissingGold: for labels="gold" without gold.
    """
    one = simulator.simulator if isinstance(simulator, Events) else simulator
    if labels not in LABELS:
        raise InputError(f"labels = {labels!r}: expected one of {', '.join(map(repr, LABELS))}.")
    if labels == "gold" and not one.has_gold:
        raise MissingGold(f"labels='gold': simulator '{one.name}' has no log_joint. Use labels='hard'.")
    if designs is not None and not isinstance(designs, Distribution):
        rows = to_column("design", designs)
        rows = as_candidates(rows[None] if rows.ndim == 1 and len(one.designs) > 1 else rows, one.designs, "designs")
        designs = rows[torch.arange(n) % len(rows)]
    data = simulate(one, n, proposal=prior, design=designs, seed=seed, workers=workers, progress=False)
    options = {"seed": seed, "progress": False, **options}
    found = None
    if labels != "gold":
        found = _trained(one, prior, data, "hard", options)
    if found is None or (labels == "auto" and found.excess is not None and found.excess <= HELPS):
        found = _trained(one, prior, data, "gold", options)
    return found


def _trained(one: Simulator, prior: Distribution, data: Simulations, labels: str, options: dict[str, Any]) -> Learned:
    if one.categories:
        rows = len(data)
        batch = min(max(rows // 20, 128), 512)
        short = {"weight_decay": 0.0, "max_epochs": max(50, STEPS * batch // rows)}
        head: Estimator = LikelihoodEstimator.from_data(data)
        loss, options = (nle if labels == "hard" else _labelled), {**short, **options}
    else:
        head, loss = RatioEstimator.from_data(data), nre if labels == "hard" else nre_gold
    run = fit(head, loss, data, simulator=one, **options)
    certificate, excess = _certified(run, one, prior, data, int(options["seed"]))
    return Learned(run.estimator, labels, certificate, excess, data, run)


def _certified(
    run: Fit, one: Simulator, prior: Distribution, data: Simulations, seed: int
) -> tuple[Gain, float | None]:
    """The contrastive bound on held-out rows, and by how much that of the joint ratios exceeds it."""
    rows, others = data[run.held_out[:HELD]], points(prior, CONTRASTS, seed, 2)
    learned = replace(contrastive(see(reader(of_runs(run.estimator, one)), rows, others)), simulations=0)
    if not one.has_gold:
        return learned, None
    joint = contrastive(see(joint_reader(one), rows, others))
    return learned, joint.value - learned.value


@needs("theta_alt", "joint_log_ratio", density="x", contrasts=9)
def _labelled(estimator: Estimator, batch: Batch) -> Tensor:
    """`nle` and `nre_gold` together: what x was says how often it comes, soft labels which theta it tells of."""
    return nle(estimator, batch) + nre_gold(estimator, batch)
