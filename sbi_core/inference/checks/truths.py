"""Where truths and their x come from: a simulator, or rows that training has not seen."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.campaign import simulate
from sbi_core.errors import InputError
from sbi_core.parameters import match, names
from sbi_core.priors import describe
from sbi_core.seeding import seeded
from sbi_core.simulations import Simulations
from sbi_core.simulator import Simulator


@dataclass(frozen=True)
class Truths:
    """N thetas and what was simulated at them.

    Attributes:
        theta: (N, D).
        x: (N, *event), or sets (N, n, *event).
        given: design (N, K) or (N, n, K) and n_events (N,) or (N, n), where x has such.
        prior: what theta was drawn from.
        notes: what a careful reader should know.
    """

    theta: Tensor
    x: Tensor
    given: dict[str, Any]
    prior: Distribution
    notes: tuple[str, ...]


def from_simulator(
    estimator: Any,
    simulator: Simulator,
    axes: Any,
    prior: Distribution | None,
    n: int,
    *,
    iid: int | None,
    design: Any,
    seed: int,
    progress: bool,
) -> Truths:
    """n fresh pairs, or with `iid` n sets of so many x at one theta.

    Raises:
        InputError: if the simulator has other parameters than `axes`, or in another order.
    """
    if match(axes, simulator.parameters, "the simulator") != list(range(len(axes))):
        known = names(simulator.parameters)
        raise InputError(f"the simulator has the parameters {known}, the estimator {names(axes)}: reorder either.")
    prior = simulator.prior if prior is None else prior
    proposal: Any = prior
    if iid is not None:
        with seeded(seed):
            proposal = prior.sample(torch.Size([n])).double().repeat_interleave(iid, 0)
    rows = simulate(simulator, n * (iid or 1), proposal=proposal, design=design, seed=seed, progress=progress)
    good, theta, x, given = rows.valid, rows.theta, rows.x, columns(estimator, rows)
    if iid is not None:
        good, theta, x = good.reshape(-1, iid).all(1), theta[::iid], x.unflatten(0, (-1, iid))
        given = {name: value.unflatten(0, (-1, iid)) for name, value in given.items()}
    return _whole(theta, x, given, good, prior, ())


def from_rows(estimator: Any, source: Any, axes: Any, prior: Distribution | None, n: int) -> Truths:
    """The first n rows, compared with what the estimator says about its training.

    Raises:
        InputError: for rows of training, of another prior, or of an unknown one.
    """
    rows: Simulations = source[:n].reordered(axes)
    proposal, notes = rows.info.proposal, []
    if proposal is not None and prior is not None and describe(proposal) != describe(prior):
        raise InputError(
            f"prior: the rows were drawn from {proposal!r}, not from {prior!r}; calibration holds over the density "
            "that theta was drawn from. Leave the prior out, or give the simulator as source."
        )
    prior = proposal if prior is None else prior
    if prior is None:
        raise InputError("prior: the rows do not say which density theta was drawn from. Give prior=...")
    made = getattr(estimator, "provenance", None) or {}
    campaign = made.get("campaign_seed")
    same = campaign is not None and campaign == rows.info.seed
    if same and len(source) == sum(made["rows"]):
        raise InputError(
            f"source: these are the {len(source)} rows of training (campaign seed {campaign}), on which posteriors "
            "look better than they are. Give rows that were left out, or the simulator."
        )
    if same:
        notes.append("the rows come from the campaign of training; that none of them was in training is unchecked")
    elif campaign is None or rows.info.seed is None:
        notes.append("whether training has seen these rows is unchecked")
    return _whole(rows.theta, rows.x, columns(estimator, rows), rows.valid, prior, tuple(notes))


def columns(estimator: Any, rows: Simulations) -> dict[str, Any]:
    """What the estimator reads of rows beside x: design (N, K), and n_events (N,) where that varies."""
    count = rows.n_events if getattr(estimator, "needs_n_events", False) else None
    return {name: v for name, v in (("design", rows.design), ("n_events", count)) if v is not None}


def _whole(
    theta: Tensor, x: Tensor, given: dict[str, Any], good: Tensor, prior: Distribution, notes: tuple[str, ...]
) -> Truths:
    if not bool(good.all()):
        lost = int((~good).sum())
        said = f"{lost} of {len(good)} pairs were left out, for the simulator failed there; posteriors do not know that"
        notes = (*notes, said)
    return Truths(theta[good], x[good], {name: value[good] for name, value in given.items()}, prior, notes)
