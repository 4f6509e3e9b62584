"""The settings of `sbi-run`: which keys there are, what they may hold, and where the observation is read from."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_core.columns import check_labels, read_csv
from sbi_core.errors import InputError, nearest

GROUPS = ("simulator", "estimator", "loss", "prior")
"""Settings that say which class or function is used: `_target_` and its options."""

FREE = ("x_obs", "iid", "workers", "device", "progress", "run_dir")
"""Settings that may change in a run folder that exists; all others belong to what was learned there."""

Rule = tuple[Callable[[Any], bool], str]


def _whole(least: int, *, or_null: bool = False) -> Rule:
    def fits(value: Any) -> bool:
        return (or_null and value is None) or (type(value) is int and value >= least)

    return fits, f"a whole number, at least {least}{' (or null)' if or_null else ''}"


_FLAG: Rule = (lambda value: isinstance(value, bool), "true or false")
_TEXT: Rule = (lambda value: isinstance(value, str) and bool(value.strip()), "a name")
_FILE: Rule = (lambda value: value is None or isinstance(value, str), "the name of a file (or null)")
_OBSERVED: Rule = (
    lambda value: value is None or isinstance(value, str) or _numbers(value),
    "the name of a file, a list of numbers (or null)",
)
_DEVICE: Rule = (lambda value: value is None or _is_device(value), "a device such as cpu or cuda:0 (or null)")
_PART: Rule = (lambda value: type(value) in (int, float) and 0 < value < 1, "a number between 0 and 1")
_RATE: Rule = (lambda value: type(value) in (int, float) and 0 < value < math.inf, "a positive number")
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
    "training.batch_size": _whole(1),
    "training.validation_fraction": _PART,
    "training.patience": _whole(1, or_null=True),
    "training.learning_rate": _RATE,
    "training.contrasts": _whole(1),
    "training.invalid": (lambda value: value in ("error", "drop"), "error or drop"),
}


def check_key(key: str, *, groups: Iterable[str] = (*GROUPS, "study")) -> None:
    """Raise `InputError`, naming near matches, unless there is such a key; options of a group are not looked at."""
    known = {*RULES, *groups, "training"}
    if key not in known and key.split(".")[0] not in GROUPS:
        close = get_close_matches(key, known, n=3, cutoff=0.6)
        guess = f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {', '.join(sorted(known))}."
        raise InputError(f"there is no key '{key}': {guess}")


def check_settings(config: Mapping[str, Any]) -> None:
    """Raise `InputError` unless every key of a resolved configuration is known and holds what it should."""
    flat = {key: value for key, value in config.items() if key != "training"}
    training = config.get("training", {})
    if not isinstance(training, Mapping):
        raise InputError(f"training = {training!r}: expected keys such as training.max_epochs.")
    flat |= {f"training.{key}": value for key, value in training.items()}
    for key, value in flat.items():
        check_key(key)
        fits, expected = RULES.get(key, (lambda _: True, ""))
        if not fits(value):
            raise InputError(f"{key} = {value!r}: expected {expected}.")
    for group in GROUPS:
        if config.get(group) is not None and not isinstance(config[group], Mapping):
            raise InputError(f"{group} = {config[group]!r}: expected the name of one of its files, or _target_.")


def read_observation(source: str | Sequence[float], supplied: Mapping[str, Path]) -> Tensor:
    """Read an observation from a csv, npy or npz file, a supplied name or a list of numbers.

    Args:
        source: where it is; of an npz file the array `x_obs`, `x` or the only one is taken.
        supplied: files that can be named without their path.

    Returns:
        Whatever shape the file has, (*), floating point; a csv file with n lines and P columns gives (n, P).

    Raises:
        InputError: if there is no such file, or no numbers in it.
    """
    if not isinstance(source, str):
        return torch.tensor(source, dtype=torch.float64)
    path = supplied.get(source, Path(source))
    if not path.is_file():
        here = [p.name for p in path.parent.glob("*.*")] if path.parent.is_dir() else []
        options = [str(path.parent / name) for name in here if name.endswith((".csv", ".npy", ".npz"))]
        raise InputError(f"x_obs: there is no file '{source}'; {nearest(source, [*options, *supplied])}")
    try:
        if path.suffix == ".csv":
            values: Any = read_csv(path)[1]
        elif path.suffix in (".npy", ".npz"):
            values = np.load(path, allow_pickle=False)
        else:
            raise InputError(f"x_obs: '{source}' is neither csv, npy nor npz.")
        if path.suffix == ".npz":
            found = next((name for name in ("x_obs", "x") if name in values.files), None)
            if found is None and len(values.files) != 1:
                raise InputError(f"x_obs: '{source}' holds the arrays {values.files}; expected one named x_obs.")
            values = values[found or values.files[0]]
        return torch.as_tensor(np.asarray(values, dtype=np.float64))
    except (ValueError, OSError) as error:
        raise (
            error if isinstance(error, InputError) else InputError(f"x_obs: '{source}' cannot be read ({error}).")
        ) from None


def check_event(x_obs: Tensor, event: Sequence[int], *, iid: bool, categories: int | None = None) -> Tensor:
    """Bring an observation (*) into the simulator's shape.

    Args:
        x_obs: what was read.
        event: the shape of one observation, (*event).
        iid: whether a leading axis counts independent draws at one theta.
        categories: x is a class label below this number.

    Returns:
        (*event), or (n, *event) with `iid`.

    Raises:
        InputError: for any other shape, NaN, or labels out of range.
    """
    event, found = tuple(event), tuple(x_obs.shape)
    size = math.prod(event)
    if found == event and (event != (1,) or not iid):
        rows = x_obs[None]
    elif found[1:] == event and len(found) == len(event) + 1:
        rows = x_obs
    elif event == (1,) and len(found) < 2:  # one number each
        rows = x_obs.reshape(-1, 1)
    else:
        raise InputError(f"x_obs has shape {found}, expected {event}{f' or (n, {size})' if iid else ''}.")
    if not iid and len(rows) != 1:
        raise InputError(
            f"x_obs has {len(rows)} rows of shape {event}, expected one observation. If they are independent draws at "
            "one theta, say iid=true."
        )
    bad = ~torch.isfinite(rows).flatten(1).all(1)
    if bool(bad.any()):
        what = "NaN" if bool(rows.isnan().any()) else "an infinite value"
        raise InputError(f"x_obs holds {what} in {int(bad.sum())} rows; the first is row {int(bad.nonzero()[0])}.")
    if not len(rows):
        raise InputError("x_obs has 0 rows, expected at least 1.")
    if categories is not None:
        check_labels("x_obs", rows, categories)
    return rows if iid else rows[0]


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
