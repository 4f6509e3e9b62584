"""Columns of a table of simulations: how they are converted, checked and read from a file."""

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_core.errors import InputError
from sbi_core.parameters import Parameter

FLOAT64 = ("theta", "design", "theta_alt", "joint_log_ratio", "joint_score")
_MANY = 100  # more axes of theta than this, and more than rows: the table was given on its side
INTEGER = {"n_events": torch.int64, "status": torch.uint8, "row": torch.int64}


def to_column(name: str, value: Any) -> Tensor:
    """Convert a column to the type it is kept in, refusing what cannot be kept exactly."""
    try:
        tensor = value.detach() if isinstance(value, Tensor) else torch.from_numpy(_native(value))
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: expected an array of numbers, got {type(value).__name__} ({error}).") from None
    if tensor.is_complex():
        raise InputError(f"{name} is complex ({tensor.dtype}); give real and imaginary part as separate columns.")
    if name in INTEGER:
        return tensor.to(INTEGER[name])
    if tensor.is_floating_point():
        return tensor.to(torch.float64) if name in FLOAT64 else tensor
    exact = tensor.to(torch.float64)
    if bool((exact.abs() >= 2**53).any()):
        raise InputError(f"{name} has whole numbers of 2**53 or more, which float64 would round; give floats.")
    return exact


def _native(value: Any) -> np.ndarray:
    """Copy numbers into an array of its own, in the machine's byte order."""
    array = np.array(value)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def check_labels(name: str, x: Tensor, categories: int) -> None:
    """Raise `InputError` unless x (n, 1) holds whole numbers from 0 to categories - 1 (or NaN)."""
    if x.shape[1:] != (1,):
        raise InputError(f"{name} has shape {tuple(x.shape)}; a class label needs shape (n, 1).")
    wrong = ~x.isnan() & ((x != x.round()) | (x < 0) | (x >= categories))
    if wrong.any():
        row = int(wrong.flatten().nonzero()[0])
        raise InputError(f"{name}: row {row} is {float(x[row, 0])}, not a label from 0 to {categories - 1}.")


def read_csv(path: str | Path) -> tuple[list[str], np.ndarray]:
    """Read a comma-separated table: its header and its numbers (n, columns), float64."""
    with open(path, newline="", encoding="utf-8") as file:
        lines = [line for line in csv.reader(file) if line]
    header = [cell.strip() for cell in lines[0]] if lines else []
    if not header or any(_is_number(cell) for cell in header):
        raise InputError(f"{path}: the first line must name the columns, got {header}.")
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(header) or not all(_is_number(cell) for cell in line):
            raise InputError(f"{path}, line {number}: expected {len(header)} numbers, got {line}.")
    return header, np.array([[float(cell) for cell in line] for line in lines[1:]]).reshape(-1, len(header))


def _is_number(cell: str) -> bool:
    try:
        return not math.isinf(float(cell))
    except ValueError:
        return False


def check_shapes(table: dict[str, Tensor], width: int | None) -> None:
    """Raise `InputError` unless the columns fit each other: theta (n, width), x (n, ...), one row per simulation."""
    theta, x = table["theta"], table["x"]
    expected = "(n, D)" if width is None else f"(n, {width})"
    if theta.ndim != 2 or (width is not None and theta.shape[1] != width):
        raise InputError(f"theta has shape {tuple(theta.shape)}, expected {expected}: one row per simulation.")
    if width is None and theta.shape[1] > max(len(theta), _MANY):
        guess = f"(n, {len(theta)})"
        raise InputError(f"theta has shape {tuple(theta.shape)}; it looks transposed, expected {guess}. Use theta.T.")
    if x.ndim < 2:
        raise InputError(f"x has shape {tuple(x.shape)}, expected (n, ...): use x[:, None] for one number per row.")
    for name, column in table.items():
        if len(column) != len(theta):
            raise InputError(f"{name} has {len(column)} rows, but theta has {len(theta)}: one row per simulation.")
    bad = ~torch.isfinite(theta).all(1)
    if bad.any():
        row = int(bad.nonzero()[0])
        raise InputError(
            f"theta is not finite in {int(bad.sum())} rows; the first is row {row}: {theta[row].tolist()}."
        )
    if ("theta_alt" in table) != ("joint_log_ratio" in table):
        raise InputError("theta_alt and joint_log_ratio belong together; only one of them was given.")
    n, dims = theta.shape
    alt = table.get("theta_alt")
    contrasts = alt.shape[1] if alt is not None and alt.ndim == 3 else "C"
    shapes = {"joint_score": (n, dims), "theta_alt": (n, contrasts, dims), "joint_log_ratio": (n, contrasts)}
    for name, shape in shapes.items():
        if name in table and tuple(table[name].shape) != shape:
            raise InputError(f"{name} has shape {tuple(table[name].shape)}, expected {shape}.")


def invent_parameters(theta: Tensor) -> list[Parameter]:
    """Name the axes of theta (n, D) and take their ranges from the data."""
    if not len(theta):
        raise InputError("simulations: 0 rows, expected at least 1 to tell the parameters' ranges, or parameters=...")
    low, high = theta.min(0).values, theta.max(0).values
    pairs = zip(low.tolist(), high.tolist(), strict=True)
    return [Parameter(f"theta_{k}", a, b if b > a else math.nextafter(a, math.inf)) for k, (a, b) in enumerate(pairs)]
