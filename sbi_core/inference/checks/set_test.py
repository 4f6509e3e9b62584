"""Could a set of rows be one that was simulated at one theta?"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from numpy.random import SeedSequence
from torch import Tensor
from torch.nn.functional import one_hot

from sbi_core.campaign import simulate
from sbi_core.columns import to_column
from sbi_core.inference.checks.check import Check
from sbi_core.inference.checks.crowd import TESTS, Crowd
from sbi_core.inference.checks.familiar import Familiar
from sbi_core.inference.checks.sets import FROM_SIMULATOR, LARGEST, Sets, draw_sets, gather_sets
from sbi_core.inference.checks.summaries import summaries_of, summary_names
from sbi_core.seeding import torch_generator
from sbi_core.simulations import Simulations
from sbi_core.simulator import Simulator

COLUMNS = 20
"""Columns of x up to which a set is looked at column by column; of more, at so many principal components."""

FEWEST = 10
"""Rows from which a set is looked at as a set."""


@dataclass(frozen=True)
class SetTest:
    """What sets of n rows are compared with.

    Attributes:
        known: which single rows are familiar; it gives the units.
        n: rows of a set.
        used: how many of them are looked at.
        crowd: of the summaries of simulated sets; `None` if there are none.
        spacing: whether the distance of a row to the nearest is one of them.
        unresolved: why there are none.
    """

    known: Familiar
    n: int
    used: int = 0
    crowd: Crowd | None = None
    spacing: bool = False
    unresolved: str = ""

    def check(self, x: Tensor, n_events: Tensor | None = None, *, false_alarm: float) -> list[Check]:
        """Test sets x (B n, *event), n_events (B n,), that lie one after the other."""
        if self.crowd is None:
            return [Check("set", "", math.nan, (false_alarm, 1.0), None, self.unresolved)]
        z = _view(self.known, x, n_events).unflatten(0, (-1, self.n))
        z = z[:, torch.linspace(0, self.n - 1, self.used).long()]
        numbers, names = _summarised(self.known, z, self.spacing)
        tests = TESTS if self.known.categories is None else TESTS[1:]  # rare labels have no tails
        found = self.crowd.check(numbers, names, false_alarm / len(tests), what="set", tests=tests)
        return [replace(check, name=f"{check.name} of the set") for check in found]


def set_test(
    known: Familiar, rows: Simulations | None, n: int, *, simulator: Simulator | None, design: Any, seed: int
) -> SetTest:
    """Make up sets of n rows at one theta each, from the simulator if there is one, and keep what they look like.

    Args:
        known: what is known of single rows.
        rows: stored simulations; they are made if there are none, at thetas from the simulator's prior.
        n: rows of a set.
        simulator: where rows at one theta come from.
        design: the design of the set, (K,).
        seed: of everything random here.
    """
    design = None if design is None else to_column("design", design).double()
    if n < FEWEST:
        return SetTest(known, n, unresolved=f"{n} rows are too few to be looked at as a set, {FEWEST} are enough")
    if design is not None and design.ndim > 1:
        return SetTest(known, n, unresolved="the rows have designs of their own")
    if rows is None:
        if simulator is None:
            return SetTest(known, n, unresolved="sets of rows at one theta need simulations=... or simulator=...")
        rows = simulate(simulator, FROM_SIMULATOR, design=design, seed=seed, progress=False)[:]
    spacing, used = simulator is not None or _continuous(known, rows), n
    if simulator is not None:
        sets = _drawn(known, rows, simulator, design, n, seed)
    else:
        used = min(n, LARGEST)
        given = rows.theta if rows.design is None else torch.cat([rows.theta, rows.design], 1)
        z = _view(known, rows.x, rows.n_events)
        sets = gather_sets(given, z, used, moments=known.categories is None, seed=seed)
    if sets.unresolved:
        return SetTest(known, n, unresolved=sets.unresolved)
    first, second = (_summarised(known, half, spacing)[0] for half in (sets.first, sets.second))
    crowd = Crowd.of(first, second)
    if simulator is None:  # a mean that is bent in theta reaches further than lines do: it is left to the distances
        crowd.state["tails"][:, 1, : sets.first.shape[2]] = torch.inf
    return SetTest(known, n, used, crowd, spacing)


def _drawn(known: Familiar, rows: Simulations, simulator: Simulator, design: Tensor | None, n: int, seed: int) -> Sets:
    """Sets of n rows from the simulator, at thetas of the stored rows; those with a failed row are left out."""
    rows = rows.reordered(simulator.parameters, simulator.designs)
    some = torch.randperm(len(rows), generator=torch_generator(SeedSequence(seed)))[:FROM_SIMULATOR]
    theta, settings = rows.theta[some], None if rows.design is None else rows.design[some]
    if design is not None:
        settings = design.expand(len(theta), -1)
    x, n_events = draw_sets(simulator, theta, settings, n, seed=seed)
    whole = x.flatten(1).isfinite().all(1).reshape(-1, n).all(1)
    z = _view(known, x.nan_to_num(), n_events).unflatten(0, (-1, n))[whole]
    return Sets(*z.tensor_split(2))


def _view(known: Familiar, x: Tensor, n_events: Tensor | None) -> Tensor:
    """What is compared of rows x (N, *event), n_events (N,), in a set, (N, C)."""
    if known.categories is not None:
        return one_hot(x.flatten().long(), known.categories).double()
    crowd, columns = known.crowd(), known.columns(x, n_events)
    if columns.shape[1] <= COLUMNS:
        return crowd.standard(columns)
    white, left = crowd.whitened(columns)
    size = (white.square().sum(1) + left).log1p()
    return torch.cat([white[:, : COLUMNS - 2], left.log1p()[:, None], size[:, None]], 1)


def _summarised(known: Familiar, z: Tensor, spacing: bool) -> tuple[Tensor, list[str]]:
    """Sets z (M, n, C) in numbers (M, Q) that have names."""
    if known.categories is not None:
        return z.mean(1), [f"share of label {k}" for k in range(known.categories)]
    names = known.names()
    if len(names) > COLUMNS:
        names = [*(f"component {k}" for k in range(z.shape[2] - 2)), "remainder", "distance"]
    return summaries_of(z, spacing=spacing), summary_names(names, spacing=spacing)


def _continuous(known: Familiar, rows: Simulations) -> bool:
    """Whether numbers hardly ever come twice: rows that were moved would be told from others by not doing so."""
    if known.categories is not None:
        return False
    some = rows[: min(1000, len(rows))]
    columns = known.columns(some.x, some.n_events)
    return all(len(column.unique()) > len(column) / 2 for column in columns.T if bool((column != column[0]).any()))
