"""Gold: joint likelihood ratios and joint scores, read from a simulator's own log p(x, z | theta)."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sbi_core.columns import to_column
from sbi_core.errors import InputError, MissingGold
from sbi_core.parameters import match
from sbi_core.simulations import Simulations
from sbi_core.simulator import Simulator

_ROWS, _NUMBERS = 4_000, 2**23
"""Most rows, and numbers of x, read in float64 at a time: 64 MB, as malloc may keep pieces of 32 MB or less."""


def joint_log_ratio(simulator: Simulator, simulations: Any, theta0: Any, theta1: Any) -> Tensor:
    """Log of the joint likelihood ratio, log r(x, z | theta0, theta1) = log p(x, z | theta0) - log p(x, z | theta1).

    Its average over z at fixed x, exp of it weighted by p(z | x, theta1), is p(x | theta0) / p(x | theta1)
    (arXiv:1805.12244, eqs. 5 and 9).

    Args:
        simulator: a simulator with `log_joint`.
        simulations: N rows with z; their parameters are matched to the simulator's by name.
        theta0: (D,), or one per row (N, D).
        theta1: (D,), or one per row (N, D).

    Returns:
        (N,) nats, float64; infinite where only one of the two could have made the row.

    Raises:
        MissingGold: if the simulator has no `log_joint`, or the rows no z that it needs.
        InputError: if a theta has another shape.
    """
    rows = simulations[:]
    with torch.no_grad():
        pair = [
            log_joint(simulator, rows, _theta(name, value, rows))
            for name, value in (("theta0", theta0), ("theta1", theta1))
        ]
    return pair[0] - pair[1]


def joint_score(simulator: Simulator, simulations: Any, theta: Any = None) -> Tensor:
    """Joint score t(x, z | theta) = grad_theta log p(x, z | theta), the latents held fixed.

    Its average over p(z | x, theta) is the score of the intractable likelihood (arXiv:1805.12244, eqs. 6 and 14).

    Args:
        simulator: a simulator with `log_joint`.
        simulations: N rows with z.
        theta: (D,) or (N, D); each row's own theta by default.

    Returns:
        (N, D), float64, per unit of each parameter, in the order of the simulations' parameters.

    Raises:
        MissingGold: if the simulator has no `log_joint`.
        InputError: if theta has another shape.
    """
    rows = simulations[:]
    at = rows.theta if theta is None else _theta("theta", theta, rows)
    parts = []
    for part in blocks(rows.x):
        leaf = at[part].detach().clone().requires_grad_()
        total = log_joint(simulator, rows[part], leaf).sum()
        parts.append(torch.autograd.grad(total, leaf)[0] if total.requires_grad else torch.zeros_like(leaf))
    return torch.cat(parts).detach()


def log_joint(simulator: Simulator, rows: Simulations, theta: Tensor) -> Tensor:
    """log p(x, z | theta) (M,) of rows at theta (M, D), everything in float64 and the latents detached.

    The axes of theta and design are those of the rows; they are matched by name to the simulator's. Rows are read in
    blocks, as x may be large, and stored in single precision.
    """
    if not simulator.has_gold:
        raise MissingGold(f"simulator '{simulator.name}' has no log_joint, so no gold can be read from it.")
    where, design = f"simulations of '{rows.info.simulator or 'unknown origin'}'", rows.design
    order = match(simulator.parameters, rows.info.parameters, where)
    if design is not None and simulator.designs and rows.info.designs:
        design = design[:, match(simulator.designs, rows.info.designs, where)]
    values = []
    for part in blocks(rows.x):
        x, z = (None if c is None else c[part].detach().to(torch.float64) for c in (rows.x, rows.z))
        assert x is not None  # every table has it
        value = simulator.log_joint(theta[part][:, order], x, z, None if design is None else design[part])
        if value.shape != (len(x),) or value.dtype != torch.float64:
            raise InputError(
                f"simulator '{simulator.name}': log_joint has shape {tuple(value.shape)} and type {value.dtype}, "
                f"expected ({len(x)},) and torch.float64."
            )
        values.append(value)
    return torch.cat(values)


def blocks(column: Tensor) -> Iterator[slice]:
    """Slices of the rows of a column (N, ...), one at least, of a size that may be copied."""
    size = max(1, min(_ROWS, _NUMBERS // max(1, column[:1].numel())))
    return (slice(start, start + size) for start in range(0, max(len(column), 1), size))


def _theta(name: str, value: Any, rows: Simulations) -> Tensor:
    theta = to_column("theta", value).to(rows.theta.device)
    n, dims = rows.theta.shape
    if theta.shape not in ((dims,), (n, dims)):
        raise InputError(f"{name} has shape {tuple(theta.shape)}, expected ({dims},) or ({n}, {dims}).")
    return theta.expand(n, dims)
