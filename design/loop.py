"""The closed loop: choose, run, infer, and the posterior is the next prior."""

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.design.belief import points
from sbi_core.design.choice import Choice, Cost, Utility, propose
from sbi_core.design.experiment import Experiment, Loop
from sbi_core.design.gain import Gain
from sbi_core.design.information import posterior_gain
from sbi_core.design.ledger import Ledger
from sbi_core.design.nature import Nature, answer, as_nature
from sbi_core.design.rollouts import of_runs, reader, see
from sbi_core.errors import InputError, SbiWarning
from sbi_core.inference import Posterior, infer
from sbi_core.parameters import positions
from sbi_core.priors import UniformPrior, describe
from sbi_core.seeding import fresh_seed, seeded
from sbi_core.simulations import Info, Simulations
from sbi_core.simulator import Simulator

READ = 4096
"""Thetas of the belief from which the realised gain is read."""

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
    rounds: int = 10,
    spend: float = math.inf,
    cost: Cost | None = None,
    width: Mapping[str, float] | None = None,
    noise: float = 0.0,
    folder: str | Path | None = None,
    seed: int | None = None,
    workers: int = 1,
    inference: Mapping[str, Any] | None = None,
    **options: Any,
) -> Loop:
    """Rounds of propose, experiment and infer, until a rule stops them.

    The posterior is always that of the first prior and all outcomes, so nothing is lost by repeated approximation.
    With a folder, what was chosen and told is kept as it happens: the same call after an interruption goes on with
    the same next design, repeats no experiment whose outcome was kept, and says so if one had been begun.

    Args:
        simulator: what is believed about the experiment; `Events` for runs.
        nature: who answers: `Hidden(simulator, theta)`, a function (design (K,), round) -> x or (x, n_events) or
            `None`, or a folder where someone drops the result (see `Folder`).
        estimator: f(theta, x, design), see `learn`; by default the simulator's exact likelihood.
        prior: first belief, event shape (D,); the simulator's by default.
        candidates: as in `propose`.
        utility: as in `propose`.
        policy: "gain"; or a baseline: "random", "grid" (candidates in turn), or one design (K,) for all rounds.
        rounds: at most so many.
        spend: sum of costs that must not be exceeded.
        cost: of a design; 1 by default.
        width: name of a parameter -> standard deviation to be reached; all must be.
        noise: stop when the best utility is below so many of its standard errors.
        folder: the ledger's.
        seed: fixes all decisions; `None` takes that of the ledger, or a fresh one.
        workers: processes that share candidates.
        inference: options of `infer`.
        options: of the utility.

    Raises:
        InputError: if a simulator without exact likelihood comes without an estimator, or for another loop's folder.
    """
    if estimator is None and not simulator.is_exact:
        raise InputError(
            f"run_loop: simulator '{simulator.name}' states no exact log_likelihood. Give estimator=learn(simulator, "
            "prior, n, designs=...).estimator."
        )
    prior = simulator.prior if prior is None else prior
    ask = as_nature(nature, simulator)
    picks = _picker(policy, candidates, simulator)
    ledger, seed = _opened(folder, seed, simulator, prior, policy)
    known = of_runs(simulator if estimator is None else estimator, simulator)
    flags: list[str] = []
    done: list[Experiment] = []
    spent, stopped = 0.0, f"all {rounds} rounds are done"
    for number in range(rounds):
        belief: Distribution = done[-1].posterior if done else prior
        if width and done and _reached(done[-1].posterior, width):
            stopped = f"width reached: {', '.join(f'{name} {value:g}' for name, value in width.items())}"
            break
        kept, choice = ledger.design(number), None
        if kept is not None:
            design, gain = kept[:2]
        elif policy == "gain":
            choice = propose(
                simulator,
                known,
                belief,
                candidates,
                utility,
                cost=cost,
                seed=_stream(seed, number, 0),
                workers=workers,
                **options,
            )
            design, gain = choice.design, choice.gain
        else:
            design, gain = picks(number, _stream(seed, number, 0)), None
        if kept is None:
            ledger.choose(number, design, gain)
        if gain is not None and gain.value < noise * gain.error:
            stopped = f"gain below noise: {gain.value:.3g} +- {gain.error:.2g}"
            break
        price = 1.0 if cost is None else float(cost(design))
        if spent + price > spend:
            stopped = f"budget: {spent:g} of {spend:g} spent, and the next design costs {price:g}"
            break
        outcome = ledger.outcome(number)
        if outcome is None:
            outcome = _experiment(ask, design, number, ledger, flags)
        if outcome is None:
            stopped = f"waiting for the outcome of round {number} at design {design.tolist()}"
            break
        spent += price
        done.append(
            _learned(done, design, outcome, gain, choice, known, prior, belief, _stream(seed, number, 1), inference)
        )
    return Loop(tuple(done), prior, stopped, tuple(flags))


def _experiment(
    ask: Nature, design: Tensor, number: int, ledger: Ledger, flags: list[str]
) -> tuple[Tensor, Tensor | None] | None:
    """Run the experiment of a round and keep its outcome at once; one that was begun before is said to be run again."""
    if ledger.begun(number) and not getattr(ask, "repeatable", False):
        text = f"round {number} had been begun when the loop was interrupted, and is run again at {design.tolist()}."
        flags.append(text)
        warnings.warn(text, SbiWarning, stacklevel=3)
    ledger.begin(number)
    found = ask(design, number)
    if found is None:
        return None
    x, count = answer(found)
    ledger.tell(number, x, count)
    return x, count


def _learned(
    done: list[Experiment],
    design: Tensor,
    outcome: tuple[Tensor, Tensor | None],
    gain: Gain | None,
    choice: Choice | None,
    estimator: Any,
    prior: Distribution,
    belief: Distribution,
    seed: int,
    inference: Mapping[str, Any] | None,
) -> Experiment:
    """The posterior of all outcomes, and what the last one taught."""
    x, count = outcome
    every = torch.stack([*(one.x_obs for one in done), x])
    at = torch.stack([*(one.design for one in done), design])
    counts = None
    if count is not None and getattr(estimator, "needs_n_events", False):
        counts = torch.stack([*(one.n_events for one in done if one.n_events is not None), count])
    posterior = infer(estimator, prior, every, design=at, n_events=counts, iid=True, seed=seed, **(inference or {}))
    row = Simulations(
        points(belief, 1, seed),
        x[None],
        Info(posterior.parameters),
        design=design[None],
        n_events=None if count is None else count[None],
    )
    seen = see(reader(estimator), row, points(belief, READ, seed, 1))
    log_sum, mean, inner = seen.without()
    realised = float(mean[0, 0] - log_sum[0]) + math.log(inner)
    return Experiment(design, x, count, gain, realised, posterior, choice)


def _reached(posterior: Posterior, width: Mapping[str, float]) -> bool:
    columns = positions(list(width), posterior.parameters)
    return all(float(posterior.stddev[k]) <= value for k, value in zip(columns, width.values(), strict=True))


def _picker(policy: Any, candidates: Any, simulator: Simulator) -> Any:
    """What chooses designs without looking at gains: (round, seed) -> design (K,)."""
    box = UniformPrior(simulator.designs)
    rows = None if candidates is None else torch.as_tensor(candidates, dtype=torch.float64).reshape(-1, len(box.low))
    if isinstance(policy, str) and policy not in POLICIES:
        raise InputError(f"policy = {policy!r}: expected one of {', '.join(map(repr, POLICIES))}, or a design.")
    if policy == "grid" and rows is None:
        raise InputError("policy='grid' needs candidates.")

    def pick(number: int, seed: int) -> Tensor:
        if not isinstance(policy, str):
            return torch.as_tensor(policy, dtype=torch.float64).reshape(len(box.low))
        if policy == "grid":
            return rows[number % len(rows)]
        with seeded(seed):
            return box.sample() if rows is None else rows[int(torch.randint(len(rows), ()))]

    return pick


def _opened(
    folder: str | Path | None, seed: int | None, simulator: Simulator, prior: Distribution, policy: Any
) -> tuple[Ledger, int]:
    if seed is None and folder is not None and (Path(folder) / "loop.json").exists():
        import json

        seed = int(json.loads((Path(folder) / "loop.json").read_text())["seed"])
    seed = fresh_seed() if seed is None else seed
    identity = {
        "seed": seed,
        "simulator": {"name": simulator.name, "version": simulator.version, **simulator.settings},
        "prior": describe(prior),
        "policy": policy if isinstance(policy, str) else [float(v) for v in torch.as_tensor(policy).flatten()],
    }
    return Ledger(folder, identity), seed


def _stream(seed: int, number: int, use: int) -> int:
    """A seed of its own for each use in each round."""
    return int(np.random.SeedSequence(seed, spawn_key=(number, use)).generate_state(1)[0])
