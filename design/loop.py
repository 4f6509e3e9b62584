"""The closed loop: choose, run, infer, and the posterior is the next prior."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.columns import to_column
from sbi_core.design.belief import points
from sbi_core.design.choice import Cost, Utility, as_candidates, price, propose
from sbi_core.design.experiment import Experiment, Loop
from sbi_core.design.information import posterior_gain, resolved
from sbi_core.design.ledger import Ledger
from sbi_core.design.nature import Folder, Nature, answer, as_nature
from sbi_core.design.readers import of_runs, reader
from sbi_core.design.rollouts import see
from sbi_core.errors import InputError, SbiWarning
from sbi_core.inference import Posterior, infer
from sbi_core.parameters import names, positions
from sbi_core.priors import UniformPrior, describe
from sbi_core.seeding import derived_seed, seeded
from sbi_core.simulations import Info, Simulations
from sbi_core.simulator import Simulator

READ = 4096
"""Thetas of the belief from which the realised gain is read."""

ROUNDING = 1e-9
"""How far a sum of costs may exceed what may be spent, as a share."""

POLICIES = ("gain", "random", "grid")


def run_loop(
    simulator: Simulator,
    nature: Any,
    *,
    estimator: Any = None,
    prior: Distribution | None = None,
    candidates: Any = None,
    utility: Utility = posterior_gain,
    policy: Any = "gain",
    start: Any = None,
    rounds: int = 10,
    spend: float = math.inf,
    cost: Cost | None = None,
    width: Mapping[str, float] | None = None,
    noise: float = 0.0,
    folder: str | Path | None = None,
    seed: int | None = None,
    workers: int = 1,
    inference: Mapping[str, Any] | None = None,
    callback: Callable[[Experiment], Any] | None = None,
    **options: Any,
) -> Loop:
    """Rounds of propose, experiment and infer, until a rule stops them.

    The posterior is always that of the first prior and all outcomes, so nothing is lost by repeated approximation.
    With a folder, what was chosen and told is kept as it happens: the same call after an interruption goes on with
    the same next design, repeats no experiment whose outcome was kept, and says so if one had been begun. It may be
    carried on with other stopping rules, and with other candidates, utility, cost, options, estimator or nature, which
    is said; simulator, prior, policy and seed stay.

    Args:
        simulator: what is believed about the experiment; `Events` for runs.
        nature: who answers: `Hidden(simulator, theta)`, a function (design (K,), round) -> x or (x, n_events) or
            `None`, or a folder where someone drops the result (see `Folder`).
        estimator: f(theta, x, design), see `learn`; by default the simulator's exact likelihood.
        prior: first belief, event shape (D,); the simulator's by default.
        candidates: as in `propose`.
        utility: as in `propose`.
        policy: "gain"; or a baseline: "random", "grid" (candidates in turn), or one design (K,) for all rounds.
        start: designs of the first rounds, as `candidates` are given; the policy comes after them.
        rounds: at most so many, those included.
        spend: sum of costs that must not be exceeded.
        cost: of a design; 1 by default.
        width: name of a parameter -> standard deviation to be reached; all must be.
        noise: stop when the best utility is below so many of its standard errors.
        folder: the ledger's; by default the one where results are dropped, if there is one.
        seed: fixes all decisions; `None` takes that of the ledger, or a fresh one.
        workers: processes that share candidates.
        inference: options of `infer`.
        callback: called with each round as it is done.
        options: of the utility, and of `propose`.

    Raises:
        InputError: if a simulator without exact likelihood comes without an estimator, or for another loop's folder.
    """
    if estimator is None and not simulator.is_exact:
        raise InputError(
            f"run_loop: simulator '{simulator.name}' states no exact log_likelihood. Give estimator=learn(simulator, "
            "prior, n, designs=...).estimator."
        )
    prior = simulator.prior if prior is None else prior
    width = {} if width is None else width
    columns = positions(list(width), simulator.parameters) if width else []
    candidates = None if candidates is None else as_candidates(candidates, simulator.designs)
    first = None if start is None else as_candidates(start, simulator.designs, "start")
    pick = _picker(policy, candidates, simulator, 0 if first is None else len(first))
    known = of_runs(simulator if estimator is None else estimator, simulator)
    ask = as_nature(nature, simulator)
    folder = ask.path if folder is None and isinstance(ask, Folder) else folder
    identity = {
        "simulator": simulator,
        "parameters": simulator.parameters,
        "designs": simulator.designs,
        "prior": describe(prior),
        "policy": policy if isinstance(policy, str) else to_column("design", policy).tolist(),
    }
    decides = {
        "start": first,
        "candidates": candidates,
        "utility": utility,
        "cost": cost,
        "options": options,
        "nature": nature,
    }
    ledger = Ledger(folder, seed, identity, {**decides, "estimator": estimator, "inference": inference})
    flags = list(ledger.changes())
    for text in flags:
        warnings.warn(text, SbiWarning, stacklevel=2)
    done: list[Experiment] = []
    spent, stopped = 0.0, f"all {rounds} rounds are done"
    for number in range(rounds):
        belief, choice = done[-1].posterior if done else prior, None
        for_choice, for_inference = derived_seed(ledger.seed, number, 0), derived_seed(ledger.seed, number, 1)
        if (kept := ledger.design(number)) is not None:
            (design, gain), choice = kept, ledger.choice(number, simulator.designs)
        elif first is not None and number < len(first):
            design, gain = first[number], None
        elif pick is not None:
            design, gain = pick(number, for_choice), None
        else:
            given = {"cost": cost, "seed": for_choice, "workers": workers, **options}
            try:
                choice = propose(simulator, known, belief, candidates, utility, **given)
            except InputError as error:
                if not done:
                    raise
                stopped = f"no design is left: {error}"
                break
            design, gain = choice.design, choice.gain
        if kept is None:
            ledger.choose(number, design, gain, choice)
        if gain is not None and noise and gain.value < noise * gain.error:
            stopped = f"gain below noise: {gain.value:.3g} +- {gain.error:.2g}"
            break
        spent += price(cost, design)
        if spent > spend * (1 + ROUNDING):
            stopped = f"budget: the next design would bring the costs to {spent:g}, of {spend:g}"
            break
        outcome = ledger.outcome(number) or _experiment(ask, known, design, number, ledger, flags)
        if outcome is None:
            stopped = f"waiting for the outcome of round {number} at design {design.tolist()}"
            break
        outcomes = [(one.design, one.x_obs, one.n_events) for one in done] + [(design, *outcome)]
        posterior = pooled(known, prior, outcomes, seed=for_inference, inference=inference)
        realised, coarse = _realised(known, belief, design, outcome, posterior, for_inference)
        flags += [f"round {number}, realised gain: {text}" for text in coarse]
        done.append(Experiment(design, *outcome, gain, realised, posterior, choice))
        if callback is not None:
            callback(done[-1])
        if width and all(float(posterior.stddev[k]) <= width[posterior.parameters[k].name] for k in columns):
            stopped = f"width reached: {', '.join(f'{name} {value:g}' for name, value in width.items())}"
            break
    return Loop(tuple(done), prior, stopped, tuple(flags))


def _experiment(
    ask: Nature, estimator: Any, design: Tensor, number: int, ledger: Ledger, flags: list[str]
) -> tuple[Tensor, Tensor | None] | None:
    """Run the experiment of a round and keep its outcome at once; one that was begun before is said to be run again."""
    once = not getattr(ask, "repeatable", False)
    if once and ledger.begun(number):
        text = f"round {number} had been begun when the loop was interrupted, and is run again at {design.tolist()}."
        flags.append(text)
        warnings.warn(text, SbiWarning, stacklevel=3)
    elif once:
        ledger.begin(number)
    found = ask(design, number)
    if found is None:
        ledger.put_off(number)
        return None
    x, count = answer(found, estimator, number)
    ledger.tell(number, x, count)
    return x, count


def pooled(
    estimator: Any,
    prior: Distribution,
    outcomes: Sequence[tuple[Tensor, Tensor, Tensor | None]],
    *,
    seed: int,
    inference: Mapping[str, Any] | None = None,
) -> Posterior:
    """The posterior of all outcomes: of each its design (K,), x (event), and how many of its events count, ()."""
    at, x = (torch.stack([one[k] for one in outcomes]) for k in (0, 1))  # type: ignore[misc]
    counts = [one[2] for one in outcomes if one[2] is not None]
    options = {"iid": True, "seed": seed, **(inference or {})}
    return infer(estimator, prior, x, design=at, n_events=torch.stack(counts) if counts else None, **options)


def _realised(
    estimator: Any,
    belief: Distribution,
    design: Tensor,
    outcome: tuple[Tensor, Tensor | None],
    posterior: Posterior,
    seed: int,
) -> tuple[float, tuple[str, ...]]:
    """KL(posterior || belief) in nats from `READ` thetas of the belief, and a flag if they are too few."""
    x, count = outcome
    some = points(belief, READ, seed)
    counts = None if count is None else count[None]
    row = Simulations(some[:1], x[None], Info(posterior.parameters), design=design[None], n_events=counts)
    seen = see(reader(estimator), row, some)
    log_sum, mean, inner = seen.without()
    return float(mean[0, 0] - log_sum[0]) + math.log(inner), resolved(seen)


def _picker(
    policy: Any, candidates: Tensor | None, simulator: Simulator, given: int
) -> Callable[[int, int], Tensor] | None:
    """What chooses designs without looking at gains: (round, seed) -> design (K,); `None` for policy "gain".

    The first designs were given, so many.

    Raises:
        InputError: for an unknown policy, or a design of another length.
    """
    axes = simulator.designs
    if not axes:
        raise InputError(f"run_loop: simulator '{simulator.name}' has no designs to choose from.")
    if not isinstance(policy, str):
        fixed = to_column("design", policy).reshape(-1)
        if len(fixed) != len(axes):
            raise InputError(f"policy = {fixed.tolist()}: expected a design ({len(axes)},) for {names(axes)}.")
        return lambda number, seed: fixed
    if policy not in POLICIES:
        raise InputError(f"policy = {policy!r}: expected one of {', '.join(map(repr, POLICIES))}, or a design.")
    if policy == "grid" and candidates is None:
        raise InputError("policy = 'grid' needs candidates=..., the designs to be taken in turn.")

    def pick(number: int, seed: int) -> Tensor:
        with seeded(seed):
            if candidates is None:
                return UniformPrior(axes).sample()
            turn = (number - given) % len(candidates)
            return candidates[turn if policy == "grid" else int(torch.randint(len(candidates), ()))]

    return None if policy == "gain" else pick
