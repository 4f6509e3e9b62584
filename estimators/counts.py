"""How many events of a zero-padded run count, and which."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sbi_core.errors import InputError


def checked_count(
    name: str,
    n_events: Tensor | None,
    leading: Sequence[int],
    n_max: int,
    *,
    varies: bool,
    otherwise: str,
) -> Tensor:
    """Events in each run of x (*leading, n_max, ...), as (*leading).

    Args:
        name: of who reads them.
        n_events: as given, broadcasting to (*leading).
        leading: the leading axes of x.
        n_max: room for events.
        varies: whether the number may be below n_max.
        otherwise: what to do where it is and may not.

    Raises:
        InputError: if it is missing and varies, no whole number from 0 to n_max, or of another shape.
    """
    if n_events is None:
        if varies:
            raise InputError(
                f"n_events is missing: {name} reads runs of up to {n_max} events, and zero-padding hides how many "
                "there are. Give n_events, a whole number for each x."
            )
        return torch.full(tuple(leading), n_max)
    if n_events.is_floating_point() or bool(((n_events < 0) | (n_events > n_max)).any()):
        raise InputError(f"n_events holds {n_events.flatten()[:5].tolist()}, expected whole numbers, 0 to {n_max}.")
    if not varies and bool((n_events != n_max).any()):
        few = f"runs of {int(n_events.min())} to {int(n_events.max())} events"
        raise InputError(f"n_events: {name} expects {n_max} events in each x; got {few}. {otherwise}")
    try:
        return n_events.expand(tuple(leading))
    except RuntimeError:
        got = tuple(n_events.shape)
        raise InputError(f"n_events has shape {got}, expected {tuple(leading)}, one for each x.") from None


def present_in(count: Tensor, x_shape: Sequence[int]) -> Tensor:
    """Which events count, (*, n_max, 1, ...), of runs x (*, n_max, ...) with so many (*)."""
    places = torch.arange(x_shape[0], device=count.device)
    return (places < count[..., None]).reshape(*count.shape, -1, *[1] * (len(x_shape) - 1))


def check_count(n_events: Tensor, rows: int, n_max: int) -> None:
    """Raise `InputError` unless n_events are integers (rows,) from 0 to n_max."""
    if n_events.shape != (rows,) or n_events.is_floating_point() or n_events.dtype == torch.bool:
        got = f"shape {tuple(n_events.shape)} and type {n_events.dtype}"
        raise InputError(f"n_events has {got}, expected integers ({rows},), one to each row of x.")
    if bool(((n_events < 0) | (n_events > n_max)).any()):
        raise InputError(f"n_events runs from {n_events.min()} to {n_events.max()}, expected 0 to {n_max}.")
