"""`sbi-run`: from a simulator to a posterior. Simulate, check gold, train, infer, report."""

import importlib
import inspect
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn
from torch.distributions import Distribution, Independent

import sbi_core.estimators
import sbi_core.simulators
from sbi_core.arguments import CONFIG, command_line, read_arguments
from sbi_core.errors import InputError, SbiError, SbiWarning, nearest
from sbi_core.inference.grid import COARSE
from sbi_core.parameters import Parameter
from sbi_core.priors import UniformPrior, check_prior
from sbi_core.run_folder import read_record, recall
from sbi_core.seeding import fresh_seed
from sbi_core.settings import GROUPS, check_event, check_key, check_settings, read_observation
from sbi_core.simulator import Simulator
from sbi_core.stages import Job, run_stages

PriorFactory = Callable[[Sequence[Parameter], Distribution | None], Distribution]


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
    seed = plain["seed"] if plain["seed"] is not None else (record or {}).get("seed", fresh_seed())
    built = {}
    for group in GROUPS:
        strange = record is not None and not {group, f"{group}._target_"} & set(given)
        if plain.get(group) and _may_build(plain[group], group, strange, needed=not trained):
            built[group] = build(plain[group], group)
    simulator = built.get("simulator")
    if simulator is None and plain["data"] is None and not trained:
        raise InputError("simulator: none was chosen, and no data either. Give simulator=... or data=rows.npz.")
    if simulator is not None and "prior" in built:
        check_prior(built["prior"](simulator.parameters, simulator.prior), simulator.parameters)
    x_obs = None
    if plain["x_obs"] is not None:
        if simulator is not None and len(simulator.parameters) > max(COARSE):
            raise InputError(
                f"simulator {simulator.name} has {len(simulator.parameters)} parameters, and posteriors are made of at "
                f"most {max(COARSE)}. Train only, with x_obs=null."
            )
        x_obs = read_observation(plain["x_obs"], _supplied())
        if simulator is not None and simulator.x_shape is not None:
            x_obs = check_event(x_obs, simulator.x_shape, iid=plain["iid"], categories=simulator.categories)
    if plain["data"] is not None and not trained and not Path(plain["data"]).exists():
        here = [str(path) for path in Path(plain["data"]).parent.glob("*.*")]
        raise InputError(f"data: there is no file '{plain['data']}'; {nearest(plain['data'], here)}")
    if str(plain["device"]).startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device = {plain['device']}: torch finds no such device here; use device=cpu.")
    return Job(
        folder=folder or Path(),
        plain=plain,
        settings={key: value for key, value in settings.items() if key not in ("run_dir", "progress")},
        seed=seed,
        record=record or {},
        trained=trained,
        x_obs=x_obs,
        fit=sbi_core.estimators.fit,
        load_estimator=sbi_core.estimators.load_estimator,
        **built,
    )


def build(config: Mapping[str, Any], group: str) -> Any:
    """Make what a configuration names: the only place where a name becomes an object.

    Args:
        config: `_target_`, one of our own names or a dotted path, and options for it.
        group: simulator, estimator, loss, prior (or study, which is only checked).

    Returns:
        A simulator; a function of the data that makes an estimator; a loss; or a function of the parameters and of
        the simulator's own prior that makes a distribution.

    Raises:
        InputError: naming `_target_`, or the option, with near matches.

    Example:
        >>> build({"_target_": "GaltonBoard", "n_rows": 10}, "simulator").n_rows
        10
    """
    if group == "study":
        for key in set(config) - {"defaults"}:
            check_key(key)
        return dict(config)
    target, options = config.get("_target_"), {key: value for key, value in config.items() if key != "_target_"}
    thing = _find(target, group)
    _check_options(thing, options, group, str(target))
    if group == "simulator":
        return _called(thing, options, f"simulator {target}")
    if group == "estimator":
        return partial(getattr(thing, "from_data", thing), **options)
    if group == "prior" and isinstance(thing, type):
        return partial(_own_prior, thing, options)
    return partial(thing, **options) if options else thing


def _find(target: Any, group: str) -> Any:
    """Return the class or function that `_target_` names."""
    own = _registry(group)
    if not isinstance(target, str) or not target:
        raise InputError(f"{group}._target_ = {target!r}: expected a name; {nearest(str(target), own)}")
    if "." not in target:
        if target not in own:
            dotted = " Your own class needs its module: my_module.MyClass."
            raise InputError(f"{group}._target_ = {target}: {nearest(target, own)}{dotted}")
        return own[target]
    module, _, name = target.rpartition(".")
    kinds: dict[str, type] = {"simulator": Simulator, "estimator": nn.Module, "prior": Distribution}
    expected = (
        f"a subclass of {kinds[group].__name__}" if group in kinds else "a function with the argument 'estimator'"
    )
    try:
        thing = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise InputError(f"{group}._target_ = {target} cannot be imported ({error}).") from error
    except AttributeError:
        options = [key for key in vars(importlib.import_module(module)) if not key.startswith("_")]
        raise InputError(f"{group}._target_ = {target}: {module} has no '{name}'; {nearest(name, options)}") from None
    if group in kinds:
        fits = isinstance(thing, type) and issubclass(thing, kinds[group])
    else:
        fits = inspect.isfunction(thing) and next(iter(inspect.signature(thing).parameters), "") == "estimator"
    if not fits:
        raise InputError(f"{group}._target_ = {target} is refused: expected {expected}.")
    return thing


def _registry(group: str) -> dict[str, Any]:
    """Our own names of a group."""
    if group == "prior":
        return {"default": _default_prior, "uniform": _uniform_prior}
    package = sbi_core.simulators if group == "simulator" else sbi_core.estimators
    things = {name: getattr(package, name) for name in package.__all__}
    if group == "simulator":
        return {
            name: thing for name, thing in things.items() if inspect.isclass(thing) and issubclass(thing, Simulator)
        }
    if group == "estimator":
        modules = {name: thing for name, thing in things.items() if inspect.isclass(thing)}
        return {
            name: thing
            for name, thing in modules.items()
            if issubclass(thing, nn.Module) and not inspect.isabstract(thing)
        }
    return {name: thing for name, thing in things.items() if hasattr(thing, "needs")}


def _check_options(thing: Any, options: Mapping[str, Any], group: str, target: str) -> None:
    """Refuse options that the constructor or function does not have."""
    parameters = inspect.signature(thing).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    if group in ("simulator", "estimator") or isinstance(thing, type):
        known = list(parameters)
    else:
        known = [p.name for p in parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    for name in options:
        if name not in known:
            hint = nearest(str(name), known) if known else "it has no options."
            raise InputError(f"{group}.{name}: {target} has no such option; {hint}")


def _called(thing: Any, options: Mapping[str, Any], what: str) -> Any:
    try:
        return thing(**options)
    except SbiError:
        raise
    except Exception as error:
        raise InputError(f"{what} cannot be made with {dict(options)}: {type(error).__name__}: {error}") from error


def _default_prior(parameters: Sequence[Parameter], own: Distribution | None) -> Distribution:
    return own if own is not None else UniformPrior(parameters)


def _uniform_prior(
    parameters: Sequence[Parameter], own: Distribution | None, *, low: Any = None, high: Any = None
) -> Distribution:
    ends = []
    for name, value in (("low", low), ("high", high)):
        numbers = [value] * len(parameters) if not isinstance(value, list | tuple) else list(value)
        if len(numbers) != len(parameters) or not all(isinstance(v, int | float | None) for v in numbers):
            raise InputError(f"prior.{name} = {value!r}: expected {len(parameters)} numbers, one per parameter.")
        ends.append(numbers)
    narrowed = []
    for axis, a, b in zip(parameters, *ends, strict=True):
        a, b = axis.low if a is None else a, axis.high if b is None else b
        narrowed.append(Parameter(axis.name, a, b, axis.unit, axis.latex, axis.integer))
    return UniformPrior(narrowed)


def _own_prior(
    kind: type[Distribution], options: Mapping[str, Any], parameters: Sequence[Parameter], own: Distribution | None
) -> Distribution:
    """A user's or torch's distribution; lists become tensors, and independent components one event."""
    tensors = {k: torch.tensor(v, dtype=torch.float64) if isinstance(v, list) else v for k, v in options.items()}
    made: Distribution = _called(kind, tensors, f"prior {kind.__name__}")
    return Independent(made, 1) if len(made.batch_shape) == 1 and not made.event_shape else made


def _may_build(config: Mapping[str, Any], group: str, strange: bool, *, needed: bool) -> bool:
    """Code that only a run folder names is not run: the command line must name it too."""
    target = str(config.get("_target_"))
    if not strange or "." not in target:
        return True
    if needed:
        raise InputError(
            f"the run folder names {group}._target_ = {target}, which is code. If you trust it, say so: "
            f"{group}._target_={target}"
        )
    return False


def _resolved(config: Any) -> dict[str, Any]:
    try:
        return OmegaConf.to_container(config, resolve=True)  # type: ignore[no-any-return]
    except OmegaConfBaseException as error:
        raise InputError(str(error).splitlines()[0]) from error


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
