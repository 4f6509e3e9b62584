"""Where the rows of a vectorised Pyro program stand in its sites, and how these are stored."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sbi_core.errors import InputError, SimulatorError
from sbi_core.simulators.pyro_trace import Draw, Draws, without_masked


@dataclass(frozen=True)
class Site:
    """One site of a vectorised program.

    Attributes:
        name: its name.
        axis: which axis of its value the rows are.
        shape: of one row's value.
        dtype: of its value.
        column: "x" or "z".
        computed: whether it is a `pyro.deterministic`.
        distribution: what it draws from.
    """

    name: str
    axis: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    column: str
    computed: bool
    distribution: str

    @property
    def numbers(self) -> int:
        """Numbers a row."""
        return math.prod(self.shape)

    def flat(self, draw: Draw) -> Tensor:
        """Its value without what is masked, rows first, all else flattened: (M, numbers)."""
        value = without_masked(draw)
        return value.movedim(self.axis, 0).reshape(value.shape[self.axis], self.numbers)

    def unflat(self, rows: Tensor) -> Tensor:
        """The value that `flat` made rows (M, numbers) of, in its own type and order of axes, (..., M, ...)."""
        return rows.reshape(len(rows), *self.shape).movedim(0, self.axis).to(self.dtype)


@dataclass(frozen=True)
class Layout:
    """The sites of a vectorised program that are stored: those of z in the program's order, those of x in that asked.

    Attributes:
        latents: columns of z.
        observed: columns of x.
    """

    latents: tuple[Site, ...]
    observed: tuple[Site, ...]

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of one observation: its own if there is one site, flat if there are several."""
        if len(self.observed) == 1:
            return self.observed[0].shape or (1,)
        return (sum(site.numbers for site in self.observed),)

    @property
    def axes(self) -> dict[str, int]:
        """Where the rows stand in each site."""
        return {site.name: site.axis for site in (*self.latents, *self.observed)}

    def columns(self, draws: Draws, rows: int) -> tuple[Tensor, Tensor | None]:
        """x (M, ...) and z (M, Z) of a run; z is `None` if nothing is latent."""
        self.check(draws, rows)
        x = _side_by_side(self.observed, draws).reshape(rows, *self.x_shape)
        return x, _side_by_side(self.latents, draws) if self.latents else None

    def values(self, x: Tensor, z: Tensor | None) -> dict[str, Tensor]:
        """The value of each site that is drawn, from x (M, ...) and z (M, Z)."""
        found: dict[str, Tensor] = {}
        for name, column, sites in (("x", x, self.observed), ("z", z, self.latents)):
            widths = [site.numbers for site in sites]
            came = 0 if column is None else column.flatten(1).shape[1]
            if came != sum(widths):
                wanted = f"{sum(widths)} for the sites {[site.name for site in sites]}"
                raise InputError(f"{name} has {came} numbers a row, expected {wanted}.")
            if column is not None and widths:
                parts = zip(sites, column.flatten(1).split(widths, 1), strict=True)
                found |= {site.name: site.unflat(part) for site, part in parts if not site.computed}
        return found

    def check(self, draws: Draws, rows: int) -> None:
        """Raise `SimulatorError` unless a run has these sites, in these shapes."""
        want = {s.name: (*s.shape[: s.axis], rows, *s.shape[s.axis :]) for s in (*self.latents, *self.observed)}
        have = {name: tuple(d.value.shape) for name, d in draws.items() if name in want or not d.computed}
        if have != want:
            name = next(name for name in [*want, *have] if have.get(name) != want.get(name))
            raise other_sites(name, have.get(name), want.get(name), rows)

    def __str__(self) -> str:
        """A table of the sites."""
        lines = [f"{'site':24s}{'column':8s}{'numbers':>8s}  distribution"]
        for site in (*self.latents, *self.observed):
            lines.append(f"{site.name:24s}{site.column:8s}{site.numbers:8d}  {site.distribution}")
        return "\n".join(lines)


def _side_by_side(sites: Sequence[Site], draws: Draws) -> Tensor:
    """Values of sites, flat, beside each other; float32 only where all are."""
    parts = [site.flat(draws[site.name]) for site in sites]
    return torch.cat([part if part.is_floating_point() else part.to(torch.float64) for part in parts], 1)


def other_sites(name: str, have: Any, want: Any, rows: int) -> SimulatorError:
    """What to raise for a site (shape or `None`) that one run has and another not."""
    what = f"site '{name}' has shape {have} in a run of {rows} rows, expected {want}: every run needs the same sites."
    return SimulatorError(f"{what} Draw to the longest loop, under poutine.mask; or say vectorized=False.")
