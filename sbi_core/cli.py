"""`sbi-run`: from a simulator to a posterior. Simulate, check gold, train, infer, report."""

import os
import sys
import traceback
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

import sbi_core.estimators
from sbi_core.arguments import CONFIG, command_line, read_arguments
from sbi_core.conf.registry import build, called
from sbi_core.errors import InputError, SbiError, SbiWarning, nearest
from sbi_core.estimators import Estimator
from sbi_core.estimators.batches import MIN_ROWS
from sbi_core.estimators.losses import check_head
from sbi_core.events import Events
from sbi_core.observation import check_event, read_observation
from sbi_core.priors import check_prior
from sbi_core.run_folder import read_record, recall
from sbi_core.seeding import fresh_seed
from sbi_core.settings import EMBEDDING, GROUPS, MANNER, check_settings
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
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # so that a user's own module is found, and never instead of an installed one
    codes: list[int] = []

    def task(config: DictConfig) -> None:
        codes.append(_run(config, request.given))

    application = hydra.main(version_base="1.3", config_path=CONFIG, config_name="config")(task)
    try:
        request = read_arguments(sys.argv[1:] if argv is None else argv)
        for config in request.configs:
            prepare(config, None if request.multirun else Path(_resolved(config)["run_dir"]), request.given)
        with command_line(request.arguments):
            application()
    except SbiError as error:
        return _complain(error, 2)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return max(codes, default=0)


def _run(config: DictConfig, given: Collection[str]) -> int:
    """Run one job and print its result in one line."""
    folder = Path(os.path.relpath(HydraConfig.get().runtime.output_dir))
    folder = folder.absolute() if folder.parts[:1] == ("..",) else folder
    try:
        job = prepare(config, folder, given)
    except SbiError as error:
        return _complain(error, 2)
    try:
        with _notes():
            results = run_stages(job)
    except SbiError as error:
        return _complain(error, 1)
    except KeyboardInterrupt:
        print(f"sbi-run: interrupted; run_dir={folder} continues it.", file=sys.stderr)
        return 130
    print(f"{results.headline()}; report: {folder / 'report.html'}", flush=True)
    return 0


def prepare(config: DictConfig, folder: Path | None, given: Collection[str]) -> Job:
    """Turn a configuration into objects, and refuse what cannot work, before anything costly.

    Args:
        config: the composed configuration.
        folder: where the run is, or will be; `None` if that is not known yet.
        given: the keys that the command line names itself.

    Raises:
        SbiError: naming the setting.
    """
    asked: dict[str, Any] = OmegaConf.to_container(config)  # type: ignore[assignment]
    record = read_record(folder) if folder is not None else None
    trained = folder is not None and (folder / "model" / "model.json").is_file() and (folder / "fit.json").is_file()
    settings = recall(record["settings"], asked, given, folder or Path()) if record is not None else asked
    plain = _resolved(OmegaConf.create(settings))
    check_settings(plain)
    if str(plain["device"]).startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device = {plain['device']}: torch finds no such device here; use device=cpu.")
    built = {}
    known = set(given) if record is not None else {*GROUPS, EMBEDDING}
    for group in GROUPS:
        if plain.get(group) and _may_build(plain[group], group, known, needed=not trained):
            network = plain[group].get("embedding")
            if group == "estimator" and isinstance(network, Mapping):
                _may_build(network, EMBEDDING, known, needed=True)
            built[group] = build(plain[group], group)
    if not trained:
        head = getattr(getattr(built.get("estimator"), "func", None), "__self__", None)  # of its `from_data`
        if isinstance(head, type) and issubclass(head, Estimator) and "loss" in built:
            check_head(built["loss"], head)
        _check_source(plain, built)
    seed = plain["seed"] if plain["seed"] is not None else (record or {}).get("seed", fresh_seed())
    return Job(
        folder=folder or Path(),
        plain=plain,
        settings={key: value for key, value in settings.items() if key not in MANNER},
        seed=seed,
        record=record or {},
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


def _may_build(config: Mapping[str, Any], group: str, known: Collection[str], *, needed: bool) -> bool:
    """Code that only a run folder names is not run: the command line must name it too."""
    target = str(config.get("_target_"))
    if "." not in target or {group, f"{group}._target_"} & set(known):
        return True
    if needed:
        raise InputError(
            f"the run folder names {group}._target_ = {target}, which is code. If you trust it, say so: "
            f"{group}._target_={target}"
        )
    return False


def _resolved(config: Any) -> dict[str, Any]:
    try:
        plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise InputError(str(error).splitlines()[0]) from error
    return plain


def _supplied() -> dict[str, Path]:
    """Observations that come with the package, by name."""
    folder = Path(str(files("sbi_core.simulators"))) / "data"
    return {path.stem: path for path in sorted(folder.glob("*.csv"))}


def _complain(error: SbiError, code: int) -> int:
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        traceback.print_exception(error)
    print(f"sbi-run: {type(error).__name__}: {error}", file=sys.stderr)
    return code


@contextmanager
def _notes() -> Iterator[None]:
    """Show warnings that are about the result as one line each."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Any, category: type[Warning], *rest: Any, **options: Any) -> None:
            if issubclass(category, SbiWarning):
                print(f"sbi-run: note: {message}", file=sys.stderr)
            else:
                usual(message, category, *rest, **options)

        warnings.showwarning = show
        warnings.simplefilter("always", SbiWarning)
        yield
