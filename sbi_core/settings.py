"""The settings of the commands: which keys there are, and what they may hold."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch

from sbi_core.errors import InputError

EMBEDDING = "estimator.embedding"
"""An option of estimators that may name a class too: a user's own network."""

MANNER = ("workers", "campaign", "device", "progress", "run_dir")
"""Settings that do not change what comes out; no run folder insists on them."""

PROGRAM_RUNNERS = ("CommandSimulator",)
"""Classes of ours that run what their options name."""

Rule = tuple[Callable[[Any], bool], str]


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < math.inf


def _whole(least: int, *, or_null: bool = False) -> Rule:
    def fits(value: Any) -> bool:
        return (or_null and value is None) or (type(value) is int and value >= least)

    return fits, f"a whole number, at least {least}{' (or null)' if or_null else ''}"


INFERENCE = ("auto", "grid", "hmc", "nuts", "importance", "direct")
"""Methods of `infer`."""

LIMITS = ("profile", "feldman_cousins", "neyman")
"""Methods of `limits`."""

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

_RUN: dict[str, Rule] = {
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
    "campaign.max_failures": _whole(0, or_null=True),
    "campaign.time_limit": _RATE,
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
    "checks.replicates": (lambda value: type(value) is int and (value == 0 or value >= 100), "0, or at least 100"),
    "checks.time_limit": _SECONDS,
    "training.invalid": (lambda value: value in ("error", "drop"), "error or drop"),
}


@dataclass(frozen=True)
class Program:
    """What one command reads.

    Attributes:
        name: as it is called.
        config: its primary configuration.
        world: the simulator of its default study.
        groups: settings that say which class or function is used: `_target_` and its options.
        observed: settings that may change in a run folder that exists.
        sections: settings that hold others.
        rules: key -> what it may hold.
        paths: settings that name files.
    """

    name: str
    config: str
    world: str
    groups: tuple[str, ...]
    observed: tuple[str, ...]
    sections: tuple[str, ...]
    rules: Mapping[str, Rule]
    paths: tuple[str, ...]

    def check_key(self, key: str) -> None:
        """Raise `InputError`, naming near matches, unless there is such a key; options of a group are not looked at."""
        known = {*self.rules, *self.groups, "study", *self.sections}
        if key not in known and key.split(".")[0] not in self.groups:
            close = get_close_matches(key, known, n=3, cutoff=0.6)
            guess = f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {', '.join(sorted(known))}."
            raise InputError(f"there is no key '{key}': {guess}")

    def knows(self, keys: Iterable[str]) -> bool:
        """Whether there are all these keys."""
        try:
            for key in keys:
                self.check_key(key)
        except InputError:
            return False
        return True

    def may_read(self, keys: Collection[str]) -> bool:
        """Whether keys are not those of another program; a misspelt one is to be told where it is read."""
        return self.knows(keys) or not any(other.knows(keys) for other in PROGRAMS)

    def check(self, config: Mapping[str, Any]) -> None:
        """Raise `InputError` unless every key of a resolved configuration is known and holds what it should."""
        flat = {key: value for key, value in config.items() if key not in self.sections}
        for section in self.sections:
            inner = config.get(section, {})
            if not isinstance(inner, Mapping):
                example = next(rule for rule in self.rules if rule.startswith(section))
                raise InputError(f"{section} = {inner!r}: expected keys such as {example}.")
            flat |= {f"{section}.{key}": value for key, value in inner.items()}
        for key, value in flat.items():
            self.check_key(key)
            fits, expected = self.rules.get(key, (lambda _: True, ""))
            if not fits(value):
                raise InputError(f"{key} = {value!r}: expected {expected}.")
        for group in self.groups:
            if config.get(group) is not None and not isinstance(config[group], Mapping):
                raise InputError(f"{group} = {config[group]!r}: expected the name of one of its files, or _target_.")


RUN = Program(
    name="sbi-run",
    config="config",
    world="galton_board",
    groups=("simulator", "estimator", "loss", "prior"),
    observed=("x_obs", "iid", "inference", "limits", "checks"),
    sections=("campaign", "training", "inference", "limits", "checks"),
    rules=_RUN,
    paths=("run_dir", "x_obs", "data"),
)

DESIGN = Program(
    name="sbi-design",
    config="design",
    world="muon_pairs",
    groups=("simulator", "prior", "utility", "cost"),
    observed=(
        *("truth", "answers", "candidates", "start", "rounds", "spend", "cost", "width", "noise", "utility"),
        *("baselines", "gain", "inference"),
    ),
    sections=("training", "gain", "inference"),
    rules={
        **{key: _RUN[key] for key in ("name", "run_dir", "seed", "workers", "device", "progress")},
        **{
            f"training.{key}": _RUN[f"training.{key}"]
            for key in ("max_epochs", "batch_size", "patience", "learning_rate")
        },
        **{key: rule for key, rule in _RUN.items() if key.startswith("inference.")},
        "events": _whole(1, or_null=True),
        "luminosity": _RATE,
        "truth": (
            lambda value: value in (None, "random") or _is_named(value),
            "values by name, '{mass: 1.5}', or random (or null)",
        ),
        "answers": (lambda value: value is None or isinstance(value, str), "the name of a folder (or null)"),
        "candidates": (
            lambda value: value is None or _numbers(value) or _is_lattice(value),
            "a list of designs, or '{energy: [60, 130, 29]}' for 29 from 60 to 130 (or null)",
        ),
        "start": (lambda value: value is None or _numbers(value), "a list of designs (or null)"),
        "rounds": _whole(1),
        "spend": _RATE,
        "width": (
            lambda value: value is None or (_is_named(value) and all(v > 0 for v in value.values())),
            "standard deviations by name, '{mass: 0.1}' (or null)",
        ),
        "noise": (lambda value: _is_finite(value) and value >= 0, "a number, at least 0"),
        "n_simulations": _whole(1, or_null=True),
        "labels": (lambda value: value in ("auto", "hard", "gold"), "one of auto, hard, gold"),
        "baselines": _whole(0),
        "gain.n": _whole(8),
        "gain.inner": _whole(32),
        "gain.budget": _whole(4),
        "gain.confirm": _FLAG,
    },
    paths=("run_dir", "answers"),
)
PROGRAMS = (RUN, DESIGN)
"""All commands."""


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


def _is_named(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(map(_is_finite, value.values()))


def _is_lattice(value: Any) -> bool:
    parts = list(value.values()) if isinstance(value, Mapping) else []
    return bool(parts) and all(_is_row(p, 3) and type(p[2]) is int and p[2] >= 1 for p in parts)


def _is_ranges(value: Any) -> bool:
    return isinstance(value, Mapping) and all(_is_row(item, 2) for item in value.values())


def _is_row(value: Any, length: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == length and all(map(_is_finite, value))
