"""What was observed: read from a file, brought into shape, and compared with what was simulated."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_core.columns import check_labels, read_csv, to_column
from sbi_core.errors import InputError, nearest


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


def pad_events(x_obs: Tensor, event: Sequence[int], n_events: Any = None, *, leading: int = 0) -> tuple[Tensor, Tensor]:
    """Bring runs of events into the shape that simulations of them have.

    Args:
        x_obs: (*, n, ...), with n events at most n_max.
        event: the shape of one run, (n_max, ...).
        n_events: how many events of each run count, (*) or one number; by default all n, if n is below n_max.
        leading: number of leading axes *.

    Returns:
        Runs zero-padded to (*, n_max, ...), and their numbers of events (*), int64.

    Raises:
        InputError: for more events, other shapes, or where only n_events can tell padding from events.
    """
    event, found = tuple(event), tuple(x_obs.shape[leading:])
    if len(found) != len(event) or found[1:] != event[1:] or found[0] > event[0]:
        wanted = f"({'*, ' if leading else ''}n, {', '.join(map(str, event[1:]))})"
        raise InputError(f"x_obs has shape {tuple(x_obs.shape)}, expected {wanted} with n at most {event[0]} events.")
    if n_events is None and found[0] == event[0]:
        raise InputError(
            f"n_events is missing: x_obs has room for n_max = {event[0]} events, and zero-padding hides how many there "
            "are. Give n_events=..., or the events alone."
        )
    count, runs = to_column("count", found[0] if n_events is None else n_events), x_obs.shape[:leading]
    whole = bool(torch.isin(count, torch.arange(found[0] + 1)).all())
    if not whole or count.shape not in ((), runs):
        expected = f"whole numbers from 0 to {found[0]}, one for each run"
        raise InputError(f"n_events = {count.tolist()}, expected {expected} of x_obs {tuple(x_obs.shape)}.")
    padded = x_obs.new_zeros((*x_obs.shape[:leading], *event))
    padded.narrow(leading, 0, found[0]).copy_(x_obs)
    return padded, count.long().expand(runs)


def check_constant(x_obs: Tensor, constants: Tensor, present: Tensor | None = None) -> None:
    """Raise `InputError` if x differs from what it always was in training, for nothing was learned about that.

    Args:
        x_obs: (*, event).
        constants: the value of x (event) where it was constant in training, NaN elsewhere.
        present: which numbers count, (*, event).
    """
    differs = constants.isfinite() & ~torch.isclose(x_obs.double(), constants, rtol=2**-22, atol=0.0)  # float32
    differs = differs if present is None else differs & present
    if bool(differs.any()):
        place = tuple(differs.nonzero()[0].tolist())
        column = place[differs.ndim - constants.ndim :]
        was, came = float(constants[column]), float(x_obs[place])
        name = f"column {column[0]}" if len(column) == 1 else f"place {column}"
        raise InputError(
            f"x_obs has {came:g} in {name}, which was constant at {was:g} in the training rows: the estimator has "
            "learned nothing about other values. Simulate rows in which it varies."
        )


def check_event(
    x_obs: Tensor, event: Sequence[int], *, iid: bool, categories: int | None = None, runs: bool = False
) -> Tensor:
    """Bring an observation (*) into the simulator's shape.

    Args:
        x_obs: what was read.
        event: the shape of one observation, (*event).
        iid: whether a leading axis counts independent draws at one theta.
        categories: x is a class label below this number.
        runs: whether the first axis of an event counts events, of which there may be fewer.

    Returns:
        (*event), or (n, *event) with `iid`.

    Raises:
        InputError: for any other shape, NaN, or labels out of range.
    """
    event, found = tuple(event), tuple(x_obs.shape)
    if runs and len(found) >= len(event) and found[len(found) - len(event)] <= event[0]:
        event = (found[len(found) - len(event)], *event[1:])
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
