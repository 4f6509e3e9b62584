"""`sbi-run`: from a simulator to a posterior. Simulate, check gold, train, infer, report."""

from collections.abc import Collection, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

import sbi_core.estimators
from sbi_core.command import asked, run_command
from sbi_core.conf.registry import build, called
from sbi_core.errors import InputError, nearest
from sbi_core.estimators import Estimator
from sbi_core.estimators.batches import MIN_ROWS
from sbi_core.estimators.losses import check_head
from sbi_core.events import Events
from sbi_core.observation import check_event, read_observation
from sbi_core.priors import check_prior
from sbi_core.settings import EMBEDDING, RUN
from sbi_core.simulations import Info, Simulations
from sbi_core.simulator import Simulator
from sbi_core.stages import Job, check_gold_exists, run_stages

__all__ = ["build", "main", "prepare"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: what follows the program's name; `sys.argv` by default.

    Returns:
        0, or 2 if the request cannot be understood (nothing was done), or 1 if something went wrong on the way.
    """
    return run_command(RUN, argv, prepare, lambda job: run_stages(job).headline())


def prepare(config: DictConfig, folder: Path | None, given: Collection[str]) -> Job:
    """Turn a configuration into objects, and refuse what cannot work, before anything costly.

    Args:
        config: the composed configuration.
        folder: where the run is, or will be; `None` if that is not known yet.
        given: the keys that the command line names itself.

    Raises:
        SbiError: naming the setting.
    """
    job = asked(RUN, config, folder, given)
    plain, trained = job.plain, all((job.folder / name).is_file() for name in ("model/model.json", "fit.json"))
    trained = trained and folder is not None
    built = {}
    for group in RUN.groups:
        if plain.get(group) and job.may_build(group, plain[group], needed=not trained):
            network = plain[group].get("embedding")
            if group == "estimator" and isinstance(network, Mapping):
                job.may_build(EMBEDDING, network, needed=True)
            built[group] = build(plain[group], group)
    if not trained:
        head = getattr(getattr(built.get("estimator"), "func", None), "__self__", None)  # of its `from_data`
        if isinstance(head, type) and issubclass(head, Estimator) and "loss" in built:
            check_head(built["loss"], head)
        _check_source(plain, built)
    return Job(
        **vars(job),
        trained=trained,
        x_obs=_observed(plain, built.get("simulator")),
        fit=sbi_core.estimators.fit,
        load_estimator=sbi_core.estimators.load_estimator,
        **built,
    )


def _check_source(plain: Mapping[str, Any], built: Mapping[str, Any]) -> None:
    """Raise `SbiError` unless there is something to learn from."""
    simulator: Simulator | None = built.get("simulator")
    if plain["data"] is not None:
        path = Path(plain["data"])
        if not path.exists():
            here = [str(p) for p in path.parent.glob("*.*") if p.suffix in (".npz", ".csv", ".zarr")]
            raise InputError(f"data: there is no file '{path}'; {nearest(str(path), here)}")
        return
    if simulator is None:
        raise InputError("simulator: none was chosen, and no data either. Give simulator=... or data=rows.npz.")
    if plain["n_simulations"] < MIN_ROWS:
        raise InputError(f"n_simulations = {plain['n_simulations']} simulations: expected at least {MIN_ROWS}.")
    check_gold_exists(built.get("loss"), simulator)
    if "prior" in built:
        check_prior(built["prior"](simulator.parameters, simulator.prior), simulator.parameters)
    target = str(plain["estimator"]["_target_"]) if plain.get("estimator") else "."
    if "." not in target and simulator.x_shape is not None:  # one of ours: read its options now
        blank = _blank(simulator, simulator.x_shape)
        options = {key: value for key, value in plain["estimator"].items() if key != "_target_"}
        called(lambda **_: built["estimator"](blank), options, f"estimator {target}")


def _blank(simulator: Simulator, x_shape: Sequence[int]) -> Simulations:
    """One row of zeros, of the shapes that a simulator declares."""
    theta, x = torch.zeros(1, len(simulator.parameters), dtype=torch.float64), torch.zeros(1, *x_shape)
    count = torch.tensor([simulator.n_max]) if isinstance(simulator, Events) else None
    return Simulations(theta, x, Info(simulator.parameters, categories=simulator.categories), n_events=count)


def _observed(plain: Mapping[str, Any], simulator: Simulator | None) -> Tensor | None:
    """Read the observation (*), and bring it into the simulator's shape if that is known."""
    if plain["x_obs"] is None:
        return None
    x_obs = read_observation(plain["x_obs"], _supplied())
    if simulator is None:
        return x_obs
    if simulator.x_shape is None:
        return x_obs
    return check_event(x_obs, simulator.x_shape, iid=plain["iid"], categories=simulator.categories)


def _supplied() -> dict[str, Path]:
    """Observations that come with the package, by name."""
    folder = Path(str(files("sbi_core.simulators"))) / "data"
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix in (".csv", ".npz")}
