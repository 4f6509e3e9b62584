"""CPU time of the splines of flows beside those of nflows, by turns in one process: values, slopes and gradients.

    python benchmarks/spline_speed.py

Sizes: batches as `fit` takes them, where operations cost more than arithmetic, and one that is large.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from nflows.transforms.splines.rational_quadratic import unconstrained_rational_quadratic_spline
from torch import Tensor

from sbi_core.estimators.splines import spline

BOUND, BINS, ROUNDS = 5.0, 8, 200
SHAPES = ((500, 2), (500, 8), (20_000, 8))


def theirs(value: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
    sides = parameters[..., :BINS], parameters[..., BINS : 2 * BINS], parameters[..., 2 * BINS :]
    found: tuple[Tensor, Tensor] = unconstrained_rational_quadratic_spline(
        value, *sides, tails="linear", tail_bound=BOUND
    )
    return found


def ours(value: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
    return spline(value, parameters, BOUND)


def seconds(function: Callable[..., tuple[Tensor, Tensor]], *at: Tensor) -> float:
    """CPU seconds of one call and its gradient."""
    started = time.process_time()
    value, log_slope = function(*at)
    torch.autograd.grad((log_slope - 0.5 * value**2).sum(), at)
    return time.process_time() - started


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("| rows, columns | here, ms | nflows, ms | here over nflows (16% to 84%) |", "|---" * 4 + "|", sep="\n")
    for shape in SHAPES:
        at = [part.requires_grad_() for part in (torch.randn(shape), torch.randn(*shape, 3 * BINS - 1))]
        rounds = max(10, ROUNDS * 1000 // (shape[0] * shape[1]))
        taken = np.array([[seconds(function, *at) for function in (ours, theirs)] for _ in range(rounds)])[5:]
        low, middle, high = np.quantile(taken[:, 0] / taken[:, 1], [0.16, 0.5, 0.84])
        here, there = 1e3 * np.median(taken, axis=0)
        print(f"| {shape} | {here:.2f} | {there:.2f} | {middle:.2f} ({low:.2f} to {high:.2f}) |")
