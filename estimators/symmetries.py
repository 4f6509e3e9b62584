"""Groups under which an observation means the same: turns, flips, reversals."""

import torch
from torch import Tensor

from sbi_core.errors import InputError, nearest

SYMMETRIES: dict[str, list[tuple[int, tuple[int, ...]]]] = {
    "none": [(0, ())],
    "flips": [(0, ()), (0, (-1,)), (0, (-2,)), (0, (-2, -1))],
    "rotations": [(turns, ()) for turns in range(4)],
    "dihedral": [(turns, axes) for turns in range(4) for axes in ((), (-1,))],
    "reversal": [(0, ()), (0, (1,))],
}
"""Groups by name; an element is a number of quarter turns of the last two axes of x (N, ...), then axes to flip."""


def copied(x: Tensor, symmetry: str, copies: int) -> Tensor:
    """Copies of x (N, ...), (copies * N, ...): one by each element of the group, or of each row some, drawn at random.

    Those of a row differ; they are drawn from torch's global random state.
    """
    every = SYMMETRIES[symmetry]
    if copies == len(every):
        return torch.cat([_turned(x, *element) for element in every]) if copies > 1 else x
    drawn = torch.rand(len(x), len(every)).argsort(1)[:, :copies].T.flatten().to(x.device)
    x = x.repeat(copies, *[1] * (x.ndim - 1))
    for number, element in enumerate(every):
        rows = (drawn == number).nonzero()[:, 0]
        x[rows] = _turned(x[rows], *element)
    return x


def averaged(values: Tensor, symmetry: str) -> Tensor:
    """Mean over the group of numbers that belong to the places of an observation, in its shape or with sides of 1.

    Infinite ones, of places that are constant, count only where all that they are turned into are infinite too.
    """
    if symmetry == "none":
        return values
    every = torch.stack([_turned(values[None], *element)[0] for element in SYMMETRIES[symmetry]])
    finite = every.isfinite()
    return torch.where(finite.any(0), torch.where(finite, every, 0.0).sum(0) / finite.sum(0), torch.inf)


def check_pooled(pooled: tuple[int, ...], symmetry: str, shape: tuple[int, ...]) -> None:
    """Raise `InputError` where rows share scales and columns do not, or the reverse, and the group mixes the two."""
    sides = [axis % len(shape) - len(shape) in (-2, -1) for axis in pooled]
    if symmetry in ("rotations", "dihedral") and sum(sides) == 1:
        raise InputError(
            f"pooled = {list(pooled)} with symmetry '{symmetry}', which turns rows of {shape} into columns: pool both "
            "of the last two axes or neither, or use 'flips'."
        )


def check_symmetry(symmetry: str, shape: tuple[int, ...], allowed: tuple[str, ...]) -> None:
    """Raise `InputError` for a group that is not among those allowed, or does not fit the shape of x."""
    if symmetry not in allowed:
        raise InputError(f"unknown symmetry {symmetry!r}: {nearest(symmetry, allowed)}")
    if symmetry in ("flips", "rotations", "dihedral") and len(shape) < 2:
        raise InputError(f"symmetry '{symmetry}' needs images, x_shape (H, W) or (C, H, W); got {shape}.")
    if symmetry in ("rotations", "dihedral") and shape[-1] != shape[-2]:
        raise InputError(f"symmetry '{symmetry}' needs square images; got {shape}. Crop them, or use 'flips'.")


def check_copies(copies: int | None, symmetry: str) -> None:
    """Raise `InputError` for more copies than the group has elements, or none."""
    most = len(SYMMETRIES[symmetry])
    if copies is not None and not (type(copies) is int and 1 <= copies <= most):
        raise InputError(f"copies = {copies!r}, expected 1 to {most}, the size of the group '{symmetry}'.")


def _turned(x: Tensor, turns: int, axes: tuple[int, ...]) -> Tensor:
    """Turn and flip x (N, ...)."""
    return (torch.rot90(x, turns, (-2, -1)) if turns else x).flip(axes)
