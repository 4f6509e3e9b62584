"""The generalised Galton board: a likelihood that is a sum over 2^20 paths, mined path by path."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_core.errors import InputError, MissingGold
from sbi_core.parameters import Parameter
from sbi_core.simulations import Simulations
from sbi_core.simulator import Simulator


class GaltonBoard(Simulator):
    """A ball falls through rows of nails whose tilt depends on where it is; x is the slot it ends in, 0 to n_nails.

    At row l = 0 .. n_rows - 1 with zeta_v = l / (n_rows - 1), zeta_h = 2 pos / (n_nails - 1) - 1, f = sin(pi zeta_v),

        p(left) = (1 - f) / 2 + f sigmoid(10 theta zeta_h).

    Even rows: left keeps pos, right adds 1. Odd rows: left subtracts 1, right keeps it; there a ball at 0 always goes
    right and one at n_nails always left, with probability 1 and so without gradient. The ball starts in the middle.

    z (n_rows,) is the position after each row (repeated for rows that are not read), x (1,) the last of them. Source:
    arXiv:1805.12244, section IV, in the form of its published code, which made the published data.

    Args:
        n_rows: rows of nails.
        n_nails: nails in a row.

    Designs: `drop`, where the ball is dropped, 0 .. n_nails - 1; `rows`, how many rows it falls through, 1 .. n_rows.

    Example:
        >>> board = GaltonBoard()
        >>> theta = torch.tensor([[-0.8], [-0.6]]).double()
        >>> at = board.log_likelihood(theta, torch.tensor([5.0]))
        >>> round(float(at[0] - at[1]), 4)
        0.7436
    """

    parameters = (Parameter("theta", -1.0, 0.0, latex=r"\theta"),)
    x_shape = (1,)

    def __init__(self, n_rows: int = 20, n_nails: int = 31) -> None:
        if n_rows < 2 or n_nails < 3:
            raise InputError(f"n_rows = {n_rows}, n_nails = {n_nails}: expected at least 2 rows and 3 nails.")
        self.n_rows = n_rows
        self.n_nails = n_nails
        self.categories = n_nails + 1
        self.designs = (
            Parameter("drop", 0, n_nails - 1, integer=True),
            Parameter("rows", 1, n_rows, integer=True),
        )

    def sample(self, theta: Tensor, design: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Drop M balls at theta (M, 1): slots x (M, 1) and positions after each row z (M, n_rows), float32."""
        drop, rows = self._setting(design)
        slope = theta[:, 0].float() * 10
        unit = torch.rand((self.n_rows, len(theta)), generator=generator)
        path = torch.empty((self.n_rows, len(theta)))
        at = drop.float().expand(len(theta))
        for row, tilt in enumerate(self._tilt().tolist()):
            left = (slope * (at * (2 / (self.n_nails - 1)) - 1)).sigmoid_().mul_(tilt).add_((1 - tilt) / 2)
            step = torch.lt(unit[row], left, out=left)
            moved = torch.sub(at, step, out=path[row])
            moved = moved.add_(1) if row % 2 == 0 else moved.clamp_(0, self.n_nails - 1)
            if design is not None:
                torch.where(row < rows, moved, at, out=path[row])
            at = path[row]
        return at[:, None].clone(), path.T.contiguous()

    def log_joint(self, theta: Tensor, x: Tensor, z: Tensor | None, design: Tensor | None) -> Tensor:
        """log p(path | theta), theta (M, 1), z (M, n_rows), as (M,)."""
        if z is None:
            raise MissingGold(f"simulator '{self.name}': the simulations were stored without z.")
        before, number = z[:, :-1], torch.arange(1, self.n_rows)  # the first row is a fair coin, whatever theta
        odd, tilt = number % 2 == 1, self._tilt()[1:]
        side = (before - z[:, 1:]).mul_(2).sub_(odd * 2 - 1)  # 1 for a ball that went left, -1 for right
        side.mul_(before * (20 / (self.n_nails - 1)) - 10)
        chance = torch.addcmul((1 - tilt) / 2, tilt, torch.sigmoid(side * theta)).log()
        if design is None and min(self.n_rows // 2, self.n_rows - self.n_rows // 2) < self._middle:
            return chance.sum(1) - math.log(2)  # the walls are out of reach
        rows = self._setting(design)[1]
        free = ~(odd & ((before == 0) | (before == self.n_nails))) & (number < rows[..., None])
        return torch.where(free, chance, 0.0).sum(1) - math.log(2)

    def log_likelihood(self, theta: Tensor, x: Tensor, design: Tensor | None = None) -> Tensor:
        """Exact log p(x | theta, design), theta (*, 1), x (*, 1), design (*, 2), broadcasting to (*), float64."""
        slots = self.log_probabilities(theta, design)
        shape = np.broadcast_shapes(slots.shape[:-1], x.shape[:-1])
        return slots.expand(*shape, -1).gather(-1, x.long().expand(*shape, 1))[..., 0]

    def log_probabilities(self, theta: Tensor, design: Tensor | None = None) -> Tensor:
        """Exact log p of every slot, theta (*, 1), design (*, 2), as (*, n_nails + 1); differentiable in theta.

        Dynamic programming: the distribution of the position is pushed through the rows.
        """
        slots, _ = self._push(theta, design)[-1]
        reached = slots > 0
        return torch.where(reached, torch.where(reached, slots, 1.0).log(), -torch.inf)

    def score(self, theta: Tensor, x: Tensor, design: Tensor | None = None) -> Tensor:
        """Exact d/dtheta log p(x | theta, design), theta (*, 1), x (*, 1), as (*, 1)."""
        slots = self._slot_scores(theta, design)
        shape = np.broadcast_shapes(slots.shape[:-1], x.shape[:-1])
        return slots.expand(*shape, -1).gather(-1, x.long().expand(*shape, 1))

    def fisher_information(self, theta: Tensor, design: Tensor | None = None, *, latent: bool = False) -> Tensor:
        """Fisher information per ball, theta (*, 1), as (*, 1, 1): in the slot x, or with `latent` in the path.

        I_x = sum_x p (d log p / dtheta)^2; I_xz = sum_rows E[(d log p(step) / dtheta)^2].
        """
        if not latent:
            slots, _ = self._push(theta, design)[-1]
            return (slots * self._slot_scores(theta, design) ** 2).sum(-1)[..., None, None]
        rows, history = self._setting(design)[1], self._push(theta, design)
        total = theta.new_zeros((), dtype=torch.float64)
        for number in range(self.n_rows):
            left, slope = self._left(theta, number)
            free = (left > 0) & (left < 1)
            each = torch.where(free, slope**2 / torch.where(free, left * (1 - left), 1.0), 0.0)
            total = total + (number < rows) * (history[number][0] * each).sum(-1)
        return total[..., None, None]

    def draw(self, axes: Any, simulations: Simulations) -> None:
        """Draw the nails, 40 balls' paths z (N, n_rows) coloured by theta, and how all N balls fill the slots."""
        from matplotlib.collections import LineCollection
        from matplotlib.colors import LinearSegmentedColormap

        bottom, reach = self.n_rows + 5, self.n_rows // 2 + 1
        for row in range(self.n_rows):
            nails = torch.arange(self.n_nails + row % 2) - 0.5 * (row % 2)
            axes.scatter(
                nails.numpy(),
                torch.full_like(nails, row, dtype=torch.float32).numpy(),
                s=5,
                color="0.72",
                lw=0,
                zorder=1,
            )
        counts = torch.bincount(simulations.x.flatten().long(), minlength=self.n_nails + 1).numpy()
        slots = range(self.n_nails + 1)
        axes.bar(slots, -4.2 * counts / counts.max(), bottom=bottom, width=0.82, color="0.8", zorder=1)
        if simulations.z is not None:
            some, down = simulations[:40], torch.arange(self.n_rows + 1) - 0.5
            across = simulations.z[:40] - 0.5 * (torch.arange(self.n_rows) % 2 == 0)
            apart = 0.5 * (torch.arange(len(some)) * 0.618 % 1 - 0.5)  # so that paths do not hide each other
            across = torch.cat([torch.full((len(some), 1), float(self._middle)), across], 1) + apart[:, None]
            colours = ["#2c105c", "#0072B2", "#35b779", "#c9b500"]
            lines = LineCollection(
                [torch.stack([path, down], 1).numpy() for path in across],
                array=some.theta[:, 0].numpy(),
                cmap=LinearSegmentedColormap.from_list("theta", colours),
                linewidths=1.1,
                alpha=0.75,
                zorder=2,
            )
            axes.add_collection(lines)
            axes.figure.colorbar(lines, ax=axes, label=self.parameters[0].label, pad=0.02, shrink=0.8)
        ends = max(self._middle - reach, -1), min(self._middle + reach, self.n_nails + 1)
        axes.set(xlim=ends, ylim=(bottom, -1.4), xlabel="slot", ylabel="row", yticks=range(0, self.n_rows, 5))
        axes.xaxis.get_major_locator().set_params(integer=True)

    @property
    def _middle(self) -> int:
        return (self.n_nails - 1) // 2

    def _tilt(self) -> Tensor:
        """How strongly each row depends on theta: f (n_rows,)."""
        return torch.sin(math.pi * torch.arange(self.n_rows, dtype=torch.float64) / (self.n_rows - 1))

    def _positions(self) -> Tensor:
        return torch.arange(self.n_nails + 1, dtype=torch.float64)

    def _setting(self, design: Tensor | None) -> tuple[Tensor, Tensor]:
        """Drop position and rows read, (*) each."""
        if design is None:
            return torch.tensor(self._middle), torch.tensor(self.n_rows)
        for k, axis in enumerate(self.designs):
            value = design[..., k]
            if bool(((value < axis.low) | (value > axis.high) | (value != value.round())).any()):
                raise InputError(f"design '{axis.name}' must be a whole number from {axis.low} to {axis.high}.")
        return design[..., 0].long(), design[..., 1].long()

    def _left(self, theta: Tensor, row: int) -> tuple[Tensor, Tensor]:
        """p(left) in a row for every position and its slope in theta, (*, n_nails + 1) each; a wall has no slope."""
        tilt = float(self._tilt()[row])
        position = self._positions()
        side = 2 * position / (self.n_nails - 1) - 1
        chance = torch.sigmoid(10 * theta.to(torch.float64) * side)
        left, slope = (1 - tilt) / 2 + tilt * chance, tilt * 10 * side * chance * (1 - chance)
        if row % 2 == 1:
            left = torch.where(position == 0, 0.0, torch.where(position == self.n_nails, 1.0, left))
            slope = torch.where((position == 0) | (position == self.n_nails), 0.0, slope)
        return left, slope

    def _push(self, theta: Tensor, design: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        """Distribution of the position and its slope in theta, before each row and after the last.

        n_rows + 1 pairs of (*, n_nails + 1).
        """
        drop, rows = self._setting(design)
        shape = torch.broadcast_shapes(theta.shape[:-1], drop.shape)
        at = torch.nn.functional.one_hot(drop, self.n_nails + 1).to(torch.float64).expand(*shape, -1)
        history = [(at, torch.zeros_like(at))]
        for row in range(self.n_rows):
            at, change = history[-1]
            left, slope = self._left(theta, row)
            moved = (
                _fall(at * left, at * (1 - left), row),
                _fall(change * left + at * slope, change * (1 - left) - at * slope, row),
            )
            if design is not None:
                read = (row < rows)[..., None]
                moved = torch.where(read, moved[0], at), torch.where(read, moved[1], change)
            history.append(moved)
        return history

    def _slot_scores(self, theta: Tensor, design: Tensor | None) -> Tensor:
        """d log p / dtheta of every slot, (*, n_nails + 1); 0 where a slot cannot be reached."""
        slots, change = self._push(theta, design)[-1]
        return torch.where(slots > 0, change / torch.where(slots > 0, slots, 1.0), 0.0)


def _fall(left: Tensor, right: Tensor, row: int) -> Tensor:
    """Move what went left and what went right, (*, n_nails + 1) each, to the positions after the row."""
    return left + torch.roll(right, 1, -1) if row % 2 == 0 else torch.roll(left, -1, -1) + right
