"""The settings of `sbi-run`: which keys there are, what they may hold, and where the observation is read from."""

import math
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

import torch

from sbi_core.errors import InputError

GROUPS = ("simulator", "estimator", "loss", "prior")
"""Settings that say which class or function is used: `_target_` and its options."""

EMBEDDING = "estimator.embedding"
"""An option of estimators that may name a class too: a user's own network."""

OBSERVED = ("x_obs", "iid", "inference", "limits", "checks")
"""Settings that may change in a run folder that exists: what is inferred from."""

MANNER = ("workers", "device", "progress", "run_dir")
"""Settings that do not change what comes out; no run folder insists on them."""

Rule = tuple[Callable[[Any], bool], str]


def _whole(least: int, *, or_null: bool = False) -> Rule:
    def fits(value: Any) -> bool:
        return (or_null and value is None) or (type(value) is int and value >= least)

    return fits, f"a whole number, at least {least}{' (or null)' if or_null else ''}"


INFERENCE = ("auto", "grid", "hmc", "nuts", "importance", "direct")
"""Methods of `infer`."""

LIMITS = ("profile", "feldman_cousins", "neyman")
"""Methods of `limits`."""

SECTIONS = ("training", "inference", "limits", "checks")
"""Settings that hold others."""

_FLAG: Rule = (lambda value: isinstance(value, bool), "true or false")
_TEXT: Rule = (lambda value: isinstance(value, str) and bool(value.strip()), "a name")
_FILE: Rule = (lambda value: value is None or isinstance(value, str), "the name of a file (or null)")
_OBSERVED: Rule = (
    lambda value: value is None or isinstance(value, str) or _numbers(value),
    "the name of a file, a list of numbers (or null)",
)
_DEVICE: Rule = (lambda value: value == "auto" or _is_device(value), "auto, or a device such as cpu or cuda:0")
_PART: Rule = (lambda value: type(value) in (int, float) and 0 < value < 1, "a number between 0 and 1")
_RATE: Rule = (
    lambda value: value is None or (type(value) in (int, float) and 0 < value < math.inf),
    "a positive number (or null)",
)
_SECONDS: Rule = (
    lambda value: type(value) in (int, float) and 0 < value < math.inf,
    "a positive number of seconds",
)
_RANGES: Rule = (lambda value: value is None or _is_ranges(value), "ranges by name, '{mass: [0.5, 2.0]}' (or null)")

RULES: dict[str, Rule] = {
    "name": _TEXT,
    "run_dir": _TEXT,
    "n_simulations": _whole(1),
    "seed": _whole(0, or_null=True),
    "x_obs": _OBSERVED,
    "iid": _FLAG,
    "data": _FILE,
    "parameters": _RANGES,
    "gold_check": _FLAG,
    "workers": _whole(1),
    "device": _DEVICE,
    "progress": _FLAG,
    "training.max_epochs": _whole(1, or_null=True),
    "training.batch_size": _whole(1, or_null=True),
    "training.validation_fraction": _PART,
    "training.patience": _whole(1, or_null=True),
    "training.learning_rate": _RATE,
    "training.contrasts": _whole(1, or_null=True),
    "training.weight_decay": (
        lambda value: value is None or (type(value) in (int, float) and 0 <= value < math.inf),
        "a number, at least 0 (or null)",
    ),
    "inference.method": (lambda value: value in INFERENCE, f"one of {', '.join(INFERENCE)}"),
    "inference.n": _whole(1, or_null=True),
    "inference.chains": _whole(1, or_null=True),
    "inference.time_limit": _SECONDS,
    "limits.method": (lambda value: value is None or value in LIMITS, f"one of {', '.join(LIMITS)} (or null)"),
    "limits.toys": _whole(100),
    "limits.time_limit": _SECONDS,
    "checks.pairs": (lambda value: type(value) is int and (value == 0 or value >= 100), "0, or at least 100"),
    "checks.time_limit": _SECONDS,
    "training.invalid": (lambda value: value in ("error", "drop"), "error or drop"),
}


def check_key(key: str, *, groups: Iterable[str] = (*GROUPS, "study")) -> None:
    """Raise `InputError`, naming near matches, unless there is such a key; options of a group are not looked at."""
    known = {*RULES, *groups, *SECTIONS}
    if key not in known and key.split(".")[0] not in GROUPS:
        close = get_close_matches(key, known, n=3, cutoff=0.6)
        guess = f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {', '.join(sorted(known))}."
        raise InputError(f"there is no key '{key}': {guess}")


def check_settings(config: Mapping[str, Any]) -> None:
    """Raise `InputError` unless every key of a resolved configuration is known and holds what it should."""
    flat = {key: value for key, value in config.items() if key not in SECTIONS}
    for section in SECTIONS:
        inner = config.get(section, {})
        if not isinstance(inner, Mapping):
            example = next(rule for rule in RULES if rule.startswith(section))
            raise InputError(f"{section} = {inner!r}: expected keys such as {example}.")
        flat |= {f"{section}.{key}": value for key, value in inner.items()}
    for key, value in flat.items():
        check_key(key)
        fits, expected = RULES.get(key, (lambda _: True, ""))
        if not fits(value):
            raise InputError(f"{key} = {value!r}: expected {expected}.")
    for group in GROUPS:
        if config.get(group) is not None and not isinstance(config[group], Mapping):
            raise InputError(f"{group} = {config[group]!r}: expected the name of one of its files, or _target_.")


def _numbers(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(map(_numbers, value))
    return type(value) in (int, float)


def _is_device(value: Any) -> bool:
    try:
        torch.device(value)
    except (RuntimeError, TypeError):
        return False
    return isinstance(value, str)


def _is_ranges(value: Any) -> bool:
    return isinstance(value, Mapping) and all(_numbers(item) and len(item) == 2 for item in value.values())
