"""`sbi-design`: which experiment next? Choose, run, infer, and the posterior is the next prior."""

import inspect
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.command import asked, run_command
from sbi_core.conf.registry import build
from sbi_core.design.choice import as_candidates
from sbi_core.design.findings import Study
from sbi_core.design.study import run_study
from sbi_core.errors import InputError, nearest
from sbi_core.estimators.batches import MIN_ROWS
from sbi_core.events import Events
from sbi_core.parameters import Parameter, names, positions
from sbi_core.priors import check_prior
from sbi_core.seeding import derived_seed, seeded
from sbi_core.settings import DESIGN
from sbi_core.simulator import Simulator

__all__ = ["main", "prepare"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: what follows the program's name; `sys.argv` by default.

    Returns:
        0, or 2 if the request cannot be understood (nothing was done), or 1 if something went wrong on the way.
    """
    return run_command(DESIGN, argv, prepare, lambda study: run_study(study).headline())


def prepare(config: DictConfig, folder: Path | None, given: Collection[str]) -> Study:
    """Turn a configuration into objects, and refuse what cannot work, before anything costly.

    Args:
        config: the composed configuration.
        folder: where the run is, or will be; `None` if that is not known yet.
        given: the keys that the command line names itself.

    Raises:
        SbiError: naming the setting.
    """
    job = asked(DESIGN, config, folder, given)
    plain = job.plain
    built: dict[str, Any] = {}
    for group in DESIGN.groups:
        if plain.get(group):
            job.may_build(group, plain[group], needed=True)
            built[group] = build(plain[group], group)
    for group in ("simulator", "prior", "utility"):
        if group not in built:
            raise InputError(f"{group}: none was chosen. Give {group}=...")
    world: Simulator = built["simulator"]
    if not world.designs:
        raise InputError(f"simulator: '{world.name}' has no designs to choose from.")
    if not world.is_exact and plain["n_simulations"] is None:
        raise InputError(
            f"n_simulations = null: simulator '{world.name}' states no exact log_likelihood, so an estimator is "
            "learned. Say from how many events, n_simulations=50000."
        )
    if plain["n_simulations"] is not None and plain["n_simulations"] < MIN_ROWS:
        raise InputError(f"n_simulations = {plain['n_simulations']} simulations: expected at least {MIN_ROWS}.")
    prior = built["prior"](world.parameters, world.prior)
    check_prior(prior, world.parameters)
    for name in plain["width"] or {}:
        _known("width", name, world.parameters)
    if plain["truth"] is not None and plain["answers"] is not None:
        raise InputError("truth and answers: the truth is simulated, answers are dropped by you. Give one of them.")
    return Study(
        **vars(job),
        simulator=_run(world, plain),
        prior=prior,
        utility=_utility(built["utility"], plain),
        cost=built.get("cost"),
        candidates=_inside("candidates", _candidates(plain["candidates"], world.designs), world.designs),
        start=_inside("start", plain["start"], world.designs),
        truth=_truth(plain["truth"], world.parameters, prior, job.seed),
    )


def _run(world: Simulator, plain: Mapping[str, Any]) -> Simulator:
    """One experiment: a run of events, or what the simulator makes at once."""
    n, luminosity = plain["events"], plain["luminosity"]
    return world if n is None and luminosity is None else Events(world, n, luminosity=luminosity)


def _utility(utility: Any, plain: Mapping[str, Any]) -> Any:
    """A utility that has what it needs, and no more than is its own."""
    for name in ("n", "inner", "seed"):
        if name in plain["utility"]:
            raise InputError(f"utility.{name} is not read; say {'seed' if name == 'seed' else f'gain.{name}'}=...")
    for name, parameter in inspect.signature(utility).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty and name != "seed":
            raise InputError(f"utility.{name}: {plain['utility']['_target_']} needs it; utility.{name}=...")
    return utility


def _candidates(given: Any, axes: tuple[Parameter, ...]) -> Tensor | None:
    """Designs (C, K): as they are listed, or all combinations of evenly spaced values."""
    if given is None or not isinstance(given, Mapping):
        return given if given is None else as_candidates(given, axes)
    for name in given:
        _known("candidates", name, axes)
    missing = [axis.name for axis in axes if axis.name not in given]
    if missing:
        raise InputError(f"candidates: {', '.join(missing)} is missing; say '{{{missing[0]}: [first, last, number]}}'.")
    values = [torch.linspace(*given[axis.name], dtype=torch.float64) for axis in axes]
    return torch.cartesian_prod(*values).reshape(-1, len(axes))


def _inside(key: str, given: Any, axes: tuple[Parameter, ...]) -> Tensor | None:
    """Designs (C, K) within the ranges of their axes."""
    rows = None if given is None else as_candidates(given, axes, key)
    for k, axis in enumerate(axes if rows is not None else ()):
        column = rows[:, k]  # type: ignore[index]
        if len(off := column[(column < axis.low) | (column > axis.high)]):
            raise InputError(f"{key}: {axis.name} = {float(off[0]):g} is outside {axis.low:g} to {axis.high:g}.")
    return rows


def _truth(given: Any, axes: tuple[Parameter, ...], prior: Distribution, seed: int) -> Tensor | None:
    """The hidden theta (D,): by name, or a draw of the prior."""
    if given == "random":
        with seeded(derived_seed(seed, 3)):
            return prior.sample().to(torch.float64)
    if given is None:
        return None
    positions(list(given), axes)
    if missing := [axis.name for axis in axes if axis.name not in given]:
        raise InputError(f"truth: {', '.join(missing)} is missing; it has values for {', '.join(given)}.")
    theta = torch.tensor([float(given[axis.name]) for axis in axes], dtype=torch.float64)
    support: Any = prior.support
    if not bool(support.check(theta).all()):
        raise InputError(f"truth = {dict(given)} is outside the prior {prior}.")
    return theta


def _known(key: str, name: str, axes: tuple[Parameter, ...]) -> None:
    if name not in names(axes):
        raise InputError(f"{key}: there is no '{name}'; {nearest(name, names(axes))}")
