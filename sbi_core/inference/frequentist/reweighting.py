"""Toys from simulations that are there already: events drawn with the weight that gold gives them."""

import math
from typing import Any

import torch
from torch import Tensor

from sbi_core.errors import InputError, MissingGold
from sbi_core.gold import log_joint
from sbi_core.simulations import Simulations

LEAST = 100.0
"""Effective number of events below which toys are refused."""

ENOUGH = 30.0
"""Effective number of events for each event of a toy from which on toys are as good as new.

Resampled toys have their truth where the weighted events have it, off by 1 / sqrt(effective) of one event's standard
error: of n events q has a noncentrality of n / effective, so that critical values and sets are too large. Measured
on the Galton board at 68.3%: coverage .689 +- .004 at 1/36, .699 +- .005 at 1/9.
"""

MIXTURE = 1000
"""Thetas of the rows, at most, whose mixture the rows count as drawn from."""


class Reweighted:
    """Events at any theta, resampled from N simulations with w = p(x, z | theta) / mean_m p(x, z | theta_m).

    The theta_m are those of the rows, evenly picked if there are more than `MIXTURE`: rows drawn at any one of many
    thetas serve all of them (balance heuristic; Veach & Guibas, SIGGRAPH 1995). The expectation of w is 1.

    Args:
        simulator: with `log_joint`.
        rows: simulations with z, drawn at one design.

    Raises:
        MissingGold: without log_joint or z.
        InputError: for rows of several designs, or of whole runs.
    """

    def __init__(self, simulator: Any, rows: Any) -> None:
        if simulator is None or not simulator.has_gold:
            raise MissingGold("rows: reweighting needs simulator=... with a log_joint.")
        table: Simulations = rows[:]
        table = table[table.valid].reordered(simulator.parameters, simulator.designs)
        if table.design is not None and len(table.design.unique(dim=0)) > 1:
            raise InputError("rows: simulations at several designs cannot be reweighted to one. Give one design's.")
        if table.n_events is not None:
            raise InputError("rows: whole runs of events cannot be reweighted. Give simulations of single events.")
        self.simulator, self.rows = simulator, table
        distinct = table.theta.unique(dim=0)
        thetas = distinct[torch.linspace(0, len(distinct) - 1, min(MIXTURE, len(distinct))).round().long()]
        total = torch.full((len(table),), -torch.inf).double()
        square = total.clone()
        for theta in thetas:
            term = self._log_joint(theta)
            total, square = total.logaddexp(term), square.logaddexp(2 * term)
        self._log_mixture = total - math.log(len(thetas))
        parts = float((2 * total - square).exp().median())  # how many of the thetas matter to a row
        self.exact = len(thetas) == len(distinct)
        self.denominator_error = 0.0 if self.exact else parts**-0.5

    def _log_joint(self, theta: Tensor) -> Tensor:
        """Nats (N,) at theta (D,)."""
        with torch.no_grad():
            return log_joint(self.simulator, self.rows, theta.expand(len(self.rows), -1))

    def weight(self, theta: Tensor) -> Tensor:
        """w of each row at theta (D,), (N,), with expectation 1."""
        return (self._log_joint(theta) - self._log_mixture).exp()

    def check(self, design: Tensor | None) -> None:
        """Raise `InputError` unless the rows were made at this design, (K,)."""
        have = None if self.rows.design is None else self.rows.design[0]
        if (have is None) != (design is None) or (
            have is not None and design is not None and not (design.ndim == 1 and torch.equal(have, design.double()))
        ):
            said = ["none" if d is None else str(d.tolist()) for d in (have, design)]
            raise InputError(f"rows: they were simulated at design {said[0]}, and the toys' is {said[1]}.")

    def effective(self, theta: Tensor) -> float:
        """(sum w)^2 / sum w^2 at theta (D,): how many events simulated at theta the rows are worth."""
        return _effective(self.weight(theta))

    def events(self, theta: Tensor, n: int) -> Tensor:
        """n events at theta (D,), as (n, *event), from torch's global random state.

        Raises:
            InputError: if the rows are worth fewer than `LEAST` events there.
        """
        weight = self.weight(theta)
        effective = _effective(weight)
        if not effective >= LEAST:
            raise InputError(
                f"rows: at theta = {theta.tolist()} the {len(weight)} simulations are worth {effective:.0f} events, "
                f"fewer than {LEAST:g}. Simulate near there, or leave rows out."
            )
        return self.rows.x[torch.multinomial(weight, max(n, 1), replacement=True)[:n]]

    def report(self, theta: Tensor, events: int) -> tuple[str, list[str]]:
        """What must be said about toys of so many events at thetas (G, D): a verdict, and flags."""
        weights = torch.stack([self.weight(point) for point in theta])
        effective = [_effective(weight) for weight in weights]
        least = min(effective)
        z = (weights.mean(1) - 1) / (weights.std(1) / len(self.rows) ** 0.5)
        said = (
            f"resampled from {len(self.rows)} simulations, worth {least:.0f} to {max(effective):.0f} events; "
            f"mean weight within {float(z.abs().max()):.1f} standard errors of 1"
        )
        flags = []
        if least < ENOUGH * events:
            flags.append(
                f"rows: toys of {events} events come from simulations worth {least:.0f}; expected at least "
                f"{ENOUGH:g} times as many as a toy has, or the sets are too wide"
            )
        if float(z.abs().max()) > 4:
            flags.append(f"rows: the mean weight is {float(z.abs().max()):.1f} standard errors from 1: check_gold")
        if self.denominator_error > 0.1:
            flags.append(f"rows: the mixture of thetas in the weights is known to {self.denominator_error:.0%} only")
        return said, flags


def _effective(weight: Tensor) -> float:
    """(sum w)^2 / sum w^2 of (N,)."""
    return float(weight.sum() ** 2 / weight.square().sum())
