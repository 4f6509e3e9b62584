"""A few hundred numbers that stand for one x, whatever its shape."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d, adaptive_avg_pool2d

WIDEST = 1000
"""Numbers in one x up to which each is looked at by itself."""

CHANNELS, PIECES = 8, 200
"""More channels than these are one volume; wider events are averaged to so many pieces."""

_MOMENTS = ("mean", "sd", "smallest", "largest")
_LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
_BLOCKS = 8
_AT_ONCE = 4_000_000


def features_of(x: Tensor, shape: Sequence[int], n_events: Tensor | None = None) -> Tensor:
    """What is compared of x (N, *event), (N, C), float64.

    x itself where it has at most 1,000 numbers. Of wider ones for each channel (the first axis of three or more, if it
    is at most 8) mean, sd, smallest, largest, five quantiles, the mean step between neighbours, and the means of 8 x 8
    blocks (64 pieces where there are no rows and columns). Of runs of events (n_max, ...) their number n_events (N,),
    and for each number of an event mean, sd, smallest and largest over those that count.
    """
    if n_events is not None:
        return _of_events(x.double().flatten(2) if x.ndim > 2 else x.double()[..., None], n_events)
    if math.prod(shape) <= WIDEST:
        return x.reshape(len(x), -1).double()
    parts = x.split(max(1, _AT_ONCE // math.prod(shape)))
    return torch.cat([_of_picture(part.double(), tuple(shape)) for part in parts])


def names_of(shape: Sequence[int], *, counted: bool = False) -> list[str]:
    """The names of the columns of `features_of`."""
    if counted:
        columns = range(min(math.prod(shape[1:]), PIECES))
        return ["number of events", *(f"{what} of column {k}" for what in _MOMENTS for k in columns)]
    if math.prod(shape) <= WIDEST:
        places = [tuple(map(int, np.unravel_index(k, tuple(shape)))) for k in range(math.prod(shape))]
        return [f"column {at[0]}" if len(at) == 1 else f"place {at}" for at in places]
    what = [*_MOMENTS, *(f"{level:.0%} quantile" for level in _LEVELS), "step between neighbours"]
    channels = shape[0] if _has_channels(shape) else 1
    return [
        *(f"{name} of channel {k}" for name in what for k in range(channels)),
        *(f"block {block} of channel {k}" for k in range(channels) for block in range(_BLOCKS**2)),
    ]


def _has_channels(shape: Sequence[int]) -> bool:
    return len(shape) > 2 and shape[0] <= CHANNELS


def _of_events(x: Tensor, n_events: Tensor) -> Tensor:
    """x (N, n_max, P) to (N, 1 + 4 P); a run without events has zeros."""
    if x.shape[2] > PIECES:
        x = adaptive_avg_pool1d(x, PIECES)
    present = (torch.arange(x.shape[1]) < n_events[:, None])[..., None]
    count = n_events.double()[:, None]
    mean = torch.where(present, x, 0.0).sum(1) / count.clamp(min=1)
    spread = (torch.where(present, x - mean[:, None], 0.0).square().sum(1) / count.clamp(min=1)).sqrt()
    low, high = x.masked_fill(~present, torch.inf).amin(1), x.masked_fill(~present, -torch.inf).amax(1)
    ends = [torch.where(count > 0, end, 0.0) for end in (low, high)]
    return torch.cat([count, mean, spread, *ends], 1)


def _of_picture(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """x (N, *event) to moments, quantiles, roughness and blocks of each channel."""
    sides = shape[1:] if _has_channels(shape) else shape
    channels = x.reshape(len(x), -1, *sides)
    flat = channels.flatten(2)
    moments = [flat.mean(2), flat.std(2), flat.amin(2), flat.amax(2)]
    some = flat[..., :: -(-flat.shape[2] // WIDEST)]  # enough for quantiles, which cost a sort
    quantiles = torch.quantile(some, torch.tensor(_LEVELS).double(), dim=2).unbind(0)
    rough = channels.diff(dim=-1).abs().flatten(2).mean(2)
    blocks = adaptive_avg_pool2d(channels, _BLOCKS) if len(sides) == 2 else adaptive_avg_pool1d(flat, _BLOCKS**2)
    return torch.cat([*moments, *quantiles, rough, blocks.flatten(1)], 1)
