"""Which simulations to run next: thetas and designs where trainings disagree, within what is still believed."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.distributions import Distribution

from sbi_core.columns import to_column
from sbi_core.design.choice import as_candidates
from sbi_core.design.explore import CANDIDATES, EACH, FEW, Explored, at_x_obs, everywhere
from sbi_core.design.label import Labeller
from sbi_core.design.region import BAND, Region, edge
from sbi_core.errors import InputError, MissingGold, SbiWarning
from sbi_core.estimators import Ensemble, Fit, LikelihoodEstimator, RatioEstimator, fit
from sbi_core.estimators.batches import MIN_ROWS
from sbi_core.estimators.estimator import Estimator
from sbi_core.estimators.losses import Loss, function_of, name_of
from sbi_core.inference.observed import in_shape
from sbi_core.priors import check_prior
from sbi_core.seeding import derived_seed, fresh_seed
from sbi_core.simulations import Simulations
from sbi_core.simulator import Simulator

TOUCHES = 10.0
"""A posterior touches the edge of the region its simulations came from if it has so many times more mass there."""

EXPLORE, TRAIN = 3, 8
"""First of the seeds of a round that look for thetas, and that train members."""


@dataclass(frozen=True)
class Round:
    """One round of labelling, training and exploration.

    Attributes:
        n: simulations made.
        from_prior: how many of them are draws of the prior.
        acceptance: prior mass that the chosen thetas were restricted to; 1 without truncation.
        disagreement: mean total variation, from 0 to 1, between a member's posterior and the mixture of all, after
            training: at x_obs, or averaged over simulated x.
        largest: that of the member farthest off.
        edge: posterior mass at or beyond the edge of the region that this round's thetas came from, NaN without one;
            `BAND` epsilon if the posterior is still the one the region was laid around.
        fits: the trainings of the members on all rows so far.
        estimator: the members together.
        region: what the chosen thetas were restricted to, `None` without truncation.
    """

    n: int
    from_prior: int
    acceptance: float
    disagreement: float
    largest: float
    edge: float
    fits: tuple[Fit, ...]
    estimator: Ensemble
    region: Region | None = None

    @property
    def loss(self) -> float:
        """Lowest held-out loss, mean over members. Those of two rounds do not compare, as their thetas differ."""
        return sum(min(run.history["validation"]) for run in self.fits) / len(self.fits)


@dataclass(frozen=True)
class Acquisition:
    """What rounds of chosen simulations have left.

    Attributes:
        simulations: all rows, round by round. Their `info.proposal` is `None` once a theta was chosen: of these no
            density is known.
        rounds: one by one.
        number: of the round that made each row, (N,).
        from_prior: whether each row's theta is a draw of the prior, (N,).
        seed: fixes everything.
        flags: what a careful reader should know.
    """

    simulations: Simulations
    rounds: tuple[Round, ...]
    number: Tensor
    from_prior: Tensor
    seed: int
    flags: tuple[str, ...] = field(default=())

    @property
    def estimator(self) -> Ensemble:
        """The ensemble after the last round."""
        return self.rounds[-1].estimator

    def __str__(self) -> str:
        head = f"{'round':>5} {'n':>6} {'prior':>6} {'acceptance':>10} {'disagreement':>12} {'largest':>8} {'edge':>8}"
        lines = [
            f"{k:5d} {one.n:6d} {one.from_prior:6d} {one.acceptance:10.3g} {one.disagreement:12.3f} {one.largest:8.3f} "
            f"{one.edge:8.2g} {one.loss:9.4f}"
            for k, one in enumerate(self.rounds)
        ]
        return "\n".join([f"{head} {'loss':>9}", *lines, *self.flags])


def acquire(
    simulator: Simulator,
    loss: Loss,
    prior: Distribution | None = None,
    n: int = 1000,
    x_obs: Any = None,
    *,
    design: Any = None,
    designs: Any = None,
    n_events: Any = None,
    iid: bool = False,
    rounds: int = 4,
    members: int = 3,
    head: Callable[[Simulations], Estimator] | None = None,
    exponent: float = 0.5,
    epsilon: float | None = 1e-3,
    share: float = 0.2,
    candidates: int | None = None,
    seed: int | None = None,
    workers: int = 1,
    **options: Any,
) -> Acquisition:
    """Simulate n rows in rounds, each where an ensemble trained on all rows before it disagrees most.

    A round explores: many thetas of the prior are weighed by how far the members' posteriors lie apart there (see
    `disagreement`), at x_obs, or without one averaged over x of the prior predictive. It labels: thetas are drawn
    with density prior(theta) disagreement(theta)^exponent, none twice, and simulated. It trains the members anew on
    all rows. The first round draws from the prior, and so does a share of every later one.

    With x_obs and epsilon, chosen thetas also lie in the region that holds all but epsilon of the ensemble's
    posterior (see `Region`); exponent = 0 draws from the prior truncated to it. The region is laid anew in each round
    and may grow again. A flag says so if the last posterior touches the edge of the region its simulations came from.

    Estimators of ratios and likelihoods learn p(x | theta) up to a factor of x from thetas of any density, so `infer`
    takes the ensemble with the prior that is meant, whatever was simulated. Han & Zhang call the steps exploration,
    labelling, training; truncation is after Miller et al., arXiv:2107.01214, and Deistler et al., arXiv:2210.04815.

    Args:
        simulator: what to run.
        loss: what members are trained with: of a ratio (`nre`, `alices`, ...) or a likelihood (`nle`, `scandal`).
        prior: event shape (D,); the simulator's by default.
        n: simulations in all.
        x_obs: the observation in question; without it the members are to agree on all x.
        design: the design of x_obs, (K,).
        designs: density of the design, or several (C, K) that are dealt out evenly. Without x_obs those of chosen
            rows are chosen too, from the rows before, and each row keeps contrasts of its own (see `Labeller`).
        n_events: as in `infer`.
        iid: x_obs are several observations of one theta, (m, *event), and one of them is simulated at a time.
        rounds: so many, of about equal size.
        members: of the ensemble.
        head: makes the untrained estimator from rows; by default `RatioEstimator.from_data`, or
            `LikelihoodEstimator.from_data` for a loss that needs a density of x.
        exponent: 0 ignores the disagreement.
        epsilon: posterior mass that truncation may leave out; `None` does not truncate. Of no use without x_obs.
        share: of every round, from the prior, so that nothing is lost; from 0 to 1.
        candidates: thetas that are looked at for x_obs in a round; by default 8192, and at least 8 n. A flag says so
            if few of them matter.
        seed: fixes everything; `None` draws one.
        workers: processes that simulate.
        options: of `fit`.

    Raises:
        InputError: for arguments that do not fit.
        MissingGold: if the loss needs gold that the simulator lacks.
    """
    prior = simulator.prior if prior is None else prior
    _check_loss(loss, simulator)
    check_prior(prior, simulator.parameters)
    candidates = max(CANDIDATES, EACH * n) if candidates is None else candidates
    _check_numbers(n, rounds, members, exponent, epsilon, share, candidates)
    if x_obs is None and (design is not None or n_events is not None or iid):
        raise InputError("x_obs is not given, which design, n_events and iid describe. Give x_obs, or designs=....")
    if x_obs is not None and (design is None) != (designs is None):
        given, other = ("designs", "design") if design is None else ("design", "designs")
        raise InputError(f"{given} is given without {other}: simulate at designs=..., x_obs was taken at design=....")
    if design is not None:
        as_candidates(to_column("design", design).reshape(1, -1), simulator.designs, "design")
    if "checkpoint" in options:
        raise InputError("checkpoint: acquire trains many estimators, which one folder cannot hold. Leave it out.")
    seed = fresh_seed() if seed is None else seed
    density = getattr(function_of(loss), "density", "")
    build = head or (LikelihoodEstimator if density == "x" else RatioEstimator).from_data
    labeller = Labeller(
        simulator, prior, loss, designs, designs is not None and x_obs is None, seed, workers, options.get("contrasts")
    )
    options = {"simulator": simulator, "progress": False, **options}
    observed = {"design": design, "n_events": n_events, "iid": iid}
    done: list[Round] = []
    explored: Explored | None = None
    for k in range(rounds):
        size = n * (k + 1) // rounds - n * k // rounds
        plain = size if explored is None else round(share * size)
        if plain:
            labeller.add_of_prior(plain, k)
        if explored is not None and plain < size:
            labeller.add_chosen(explored, exponent, size - plain, k)
        rows = labeller.all_rows()
        untrained = build(rows)
        if x_obs is not None and not untrained.counted:
            in_shape(x_obs, untrained.x_shape, untrained, iid, False, n_events)
        seeds = [derived_seed(seed, k, TRAIN + m) for m in range(members)]
        fits = tuple(fit(untrained, loss, rows, seed=one, **options) for one in seeds)
        ensemble = Ensemble([run.estimator for run in fits])
        before, found = explored, derived_seed(seed, k, EXPLORE)
        if x_obs is None:
            explored = everywhere(ensemble, prior, labeller.seen(), -(-n // rounds), found)
        else:
            explored = at_x_obs(ensemble, prior, x_obs, observed, epsilon, candidates, found)
        region = before.region if before is not None and plain < size else None
        done.append(_record(explored, region, size, plain, fits, ensemble))
    flags = _flags(done[-1], epsilon, math.inf if x_obs is None or explored is None else explored.effective)
    for text in flags:
        warnings.warn(text, SbiWarning, stacklevel=2)
    return Acquisition(rows, tuple(done), *labeller.origin(), seed, flags)


def _record(
    explored: Explored, region: Region | None, n: int, plain: int, fits: tuple[Fit, ...], ensemble: Ensemble
) -> Round:
    apart, beyond = explored.apart, math.nan
    if region is not None:
        beyond = edge(region, explored.cloud, explored.density.mean((0, 1)))
    acceptance = 1.0 if region is None else region.mass
    largest = float(apart.max())
    return Round(n, plain, acceptance, float(apart.mean()), largest, beyond, fits, ensemble, region)


def _flags(last: Round, epsilon: float | None, effective: float) -> tuple[str, ...]:
    flags = [f"member {m}: {text}" for m, run in enumerate(last.fits) for text in run.flags]
    if effective < FEW:
        flags.append(f"only about {effective:.0f} of the thetas that were looked at matter to x_obs. Raise candidates")
    expected = BAND * (epsilon or 0.0)
    if last.edge > min(0.5, TOUCHES * expected):
        flags.append(
            f"the posterior touches the edge of the region that the latest thetas came from: {last.edge:.2g} of its "
            f"mass lies there or beyond, {expected:.2g} were expected. Add rounds, or lower epsilon = {epsilon:g}"
        )
    return tuple(flags)


def _check_loss(loss: Loss, simulator: Simulator) -> None:
    function, name = function_of(loss), name_of(loss)
    if (density := getattr(function, "density", "")) not in ("", "x"):
        raise InputError(
            f"loss = {name} learns a {'density of theta' if density == 'theta' else density}, which depends on how "
            "theta was chosen. Use the loss of a ratio (nre, alices) or of a likelihood (nle, scandal)."
        )
    gold = {"joint_log_ratio", "joint_score"} & set(getattr(function, "needs", ()))
    if not all(simulator.may_give(column) for column in gold):
        raise MissingGold(f"loss = {name} needs gold, and simulator '{simulator.name}' has no log_joint. Use loss=nre.")


def _check_numbers(
    n: int, rounds: int, members: int, exponent: float, epsilon: float | None, share: float, candidates: int
) -> None:
    least, most = MIN_ROWS * max(1, rounds), EACH * max(1, n)
    for name, value, fine, expected in (
        ("rounds", rounds, rounds >= 1, "at least 1"),
        ("n", n, n >= least, f"at least {least}, {MIN_ROWS} for each of rounds = {rounds}"),
        ("members", members, members >= 2, "at least 2, or nothing can disagree"),
        ("exponent", exponent, 0 <= exponent < math.inf, "a number from 0 up; 0 ignores the disagreement"),
        ("epsilon", epsilon, epsilon is None or 0 < epsilon < 0.1, "a mass between 0 and 0.1, or None"),
        ("share", share, 0 <= share <= 1, "a number from 0 to 1"),
        ("candidates", candidates, candidates >= most, f"at least {most}, {EACH} for each of n = {n}"),
    ):
        if not fine:
            raise InputError(f"{name} = {value}: expected {expected}.")
