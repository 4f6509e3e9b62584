"""Sets of rows like an observed one, simulated again, of simulators that fail at times."""

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from sbi_core.campaign import simulate
from sbi_core.errors import SbiWarning, SimulatorError
from sbi_core.seeding import derived_seed
from sbi_core.simulator import Simulator

TRIES = 10
"""How often a row that failed is drawn again."""


def copies(
    simulator: Simulator,
    theta: Tensor,
    n: int,
    *,
    seed: int,
    design: Tensor | None = None,
    failing: float | None = None,
    time_limit: float | None = None,
) -> tuple[Tensor, Tensor, float]:
    """Simulate n rows at each theta; a row that fails is drawn again, as what was observed is a row that did not fail.

    A set with a row that never succeeds is not whole. To leave out all sets in which a row fails would prefer thetas at
    which few do, and of large sets it would leave none.

    Args:
        simulator: draws the rows.
        theta: one for each set, (R, D).
        n: rows of a set.
        seed: fixes the rows.
        design: one for each row, (R n, K).
        failing: share of the rows that may raise an error, or take too long; a hundredth by default.
        time_limit: seconds for a row; see `simulate`.

    Returns:
        x (R, n, *event), whether a set is whole (R,), and the share of the rows that failed when they were drawn first.

    Raises:
        SimulatorError: if more fail than may.
    """
    theta, left = theta.repeat_interleave(n, 0), math.ceil((0.01 if failing is None else failing) * len(theta) * n)
    options: dict[str, Any] = {"time_limit": time_limit, "progress": False}

    def drawn(rows: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        given = None if design is None else design[rows]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SbiWarning)  # of failed rows, which the caller tells of
            made = simulate(
                simulator, len(rows), proposal=theta[rows], seed=seed, max_failures=left, design=given, **options
            )
        return made.x, made.valid

    x, good = drawn(torch.arange(len(theta)), seed)
    x, good, lost = x.clone(), good.clone(), 1 - float(good.double().mean())
    for k in range(TRIES):
        rows = (~good).nonzero()[:, 0]
        left = len(rows)  # what failed was allowed to, and may again
        if not left:
            break
        try:
            again, succeeded = drawn(rows, derived_seed(seed, k))
        except SimulatorError:
            break  # these thetas fail whenever they are asked for
        x[rows], good[rows] = again, succeeded
        if not bool(succeeded.any()):
            break
    return x.unflatten(0, (-1, n)), good.reshape(-1, n).all(1), lost
