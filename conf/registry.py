"""From a configured name to an object: the only place where a name becomes code."""

import importlib
import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributions import Distribution, Independent

import sbi_core.design
import sbi_core.estimators
import sbi_core.simulators
from sbi_core.errors import InputError, SbiError, nearest
from sbi_core.parameters import Parameter
from sbi_core.priors import UniformPrior
from sbi_core.settings import EMBEDDING, PROGRAMS
from sbi_core.simulator import Simulator

UTILITIES = ("posterior_gain", "contrastive_bound", "expected_width", "expected_limit_width")
"""Functions of the design room that a study may choose by."""


def build(config: Mapping[str, Any], group: str) -> Any:
    """Make what a configuration names: the only place where a name becomes an object.

    Args:
        config: `_target_`, one of our own names or a dotted path, and options for it.
        group: simulator, estimator, loss, prior, utility, cost (or study, which is only checked).

    Returns:
        A simulator; a function of the data that makes an estimator; a loss, utility or cost; or a function of the
        parameters and of the simulator's own prior that makes a distribution.

    Raises:
        InputError: naming `_target_`, or the option, with near matches.

    An estimator's option `embedding` may have a `_target_` too: a user's own module.

    Example:
        >>> build({"_target_": "GaltonBoard", "n_rows": 10}, "simulator").n_rows
        10
    """
    if group == "study":
        keys = set(config) - {"defaults"}
        if not any(program.knows(keys) for program in PROGRAMS):
            raise InputError(
                f"study {config.get('name')}: no command reads all of its keys, {', '.join(sorted(keys))}."
            )
        return dict(config)
    target, options = config.get("_target_"), {key: value for key, value in config.items() if key != "_target_"}
    thing = _find(target, group)
    _check_options(thing, options, group, str(target))
    if group == "simulator":
        return called(thing, options, f"simulator {target}")
    if group == "estimator":
        network = options.get("embedding")
        if isinstance(network, Mapping) and "_target_" in network:
            options["embedding"] = _own_network(network)
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
            known = f"{nearest(target, own)} Your own class" if own else "your own function"
            raise InputError(f"{group}._target_ = {target}: {known} needs its module: my_module.MyClass.")
        return own[target]
    module, _, name = target.rpartition(".")
    kinds: dict[str, type] = {"simulator": Simulator, "prior": Distribution}
    kinds |= {"estimator": nn.Module, EMBEDDING: nn.Module}
    first = "design" if group == "cost" else "estimator"
    expected = f"a subclass of {kinds[group].__name__}" if group in kinds else f"a function with the argument '{first}'"
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
        fits = inspect.isfunction(thing) and next(iter(inspect.signature(thing).parameters), "") == first
    if not fits:
        raise InputError(f"{group}._target_ = {target} is refused: expected {expected}.")
    return thing


def _own_network(config: Mapping[str, Any]) -> nn.Module:
    """A user's own module that reads x; one of ours is chosen by its name."""
    target, options = str(config["_target_"]), {key: value for key, value in config.items() if key != "_target_"}
    if "." not in target:
        raise InputError(
            f"{EMBEDDING}._target_ = {target}: your own class needs its module, my_module.MyNet; for one of ours say "
            f"{EMBEDDING}.name={target}."
        )
    thing = _find(target, EMBEDDING)
    _check_options(thing, options, EMBEDDING, target)
    network: nn.Module = called(thing, options, f"{EMBEDDING} {target}")
    return network


def _registry(group: str) -> dict[str, Any]:
    """Our own names of a group."""
    if group == "prior":
        return {"default": _default_prior, "uniform": _uniform_prior}
    if group == "cost":
        return {}
    if group == "utility":
        return {name: getattr(sbi_core.design, name) for name in UTILITIES}
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


def called(thing: Any, options: Mapping[str, Any], what: str) -> Any:
    """Call a thing with options; any error becomes an `InputError` that names them."""
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
    made: Distribution = called(kind, tensors, f"prior {kind.__name__}")
    return Independent(made, 1) if len(made.batch_shape) == 1 and not made.event_shape else made
