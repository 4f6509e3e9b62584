"""Sets of rows at one theta: from the simulator, or made up of stored rows whose thetas are near each other."""

from dataclasses import dataclass

import torch
from numpy.random import SeedSequence
from torch import Tensor

from sbi_core.seeding import torch_generator
from sbi_core.simulator import Simulator

FROM_SIMULATOR, FROM_ROWS = 1000, 2000
"""Sets of simulations with which an observed one is compared."""

LARGEST = 100
"""Rows of a set that are compared where sets are made up of stored rows."""

RESOLVED = 4.0
"""Squared shift of the mean of a set, in its standard errors, that thetas which are too far apart may cause."""

RARE = 0.05
"""Share of rows that must differ from the most common value of a column, for its dependence on theta to be judged."""


@dataclass(frozen=True)
class Sets:
    """Sets of n rows of C columns each at one theta, in two halves that share no row.

    Attributes:
        first: (M, n, C).
        second: (M, n, C).
        unresolved: why they cannot be believed; empty if they can.
    """

    first: Tensor
    second: Tensor
    unresolved: str = ""


def draw_sets(
    simulator: Simulator, theta: Tensor, design: Tensor | None, n: int, *, seed: int
) -> tuple[Tensor, Tensor | None]:
    """n rows from the simulator at each theta (M, D) and design (M, K): x (M n, *event), n_events (M n,)."""
    generator = torch_generator(SeedSequence(seed))
    rows, settings = theta.repeat_interleave(n, 0), None if design is None else design.repeat_interleave(n, 0)
    x, z = simulator.sample(rows, settings, generator)
    return x, simulator.count(z)


def gather_sets(theta: Tensor, z: Tensor, n: int, *, moments: bool, seed: int) -> Sets:
    """Sets of n rows out of z (N, C) whose thetas (N, D) are near each other, brought to one theta.

    Around each of up to 1,000 thetas of each half, a linear regression on theta over the nearest rows moves their
    residuals to the centre (Beaumont, Zhang & Balding, Genetics 162 (2002) 2025). The row at the centre itself and its
    nearest neighbours must then have nothing more in common: with rho the correlation of their residuals, of the log
    squares or of products of two, n rho is the squared shift, in standard errors, of a set's mean that the rest of the
    dependence on theta makes.

    Args:
        theta: of the rows, and perhaps their designs, side by side.
        z: what is compared of each row.
        n: rows in a set.
        moments: whether spreads and correlations of z matter, and not its mean alone.
        seed: of the choice of rows.
    """
    generator = torch_generator(SeedSequence(seed))
    spread = theta.std(0)
    unit = theta / torch.where(spread > 0, spread, 1.0)
    near = max(n, 15 * (theta.shape[1] + 1))
    halves = torch.randperm(len(theta), generator=generator).tensor_split(2)
    if near > len(halves[0]) // 2:
        need = f"sets of {n} rows at one theta need at least {4 * near} stored rows, here are {len(theta)}"
        return Sets(z[:0, None], z[:0, None], f"{need}. Give simulator=..., or simulate more")
    made, pairs = [], []
    for half in halves:
        centres = torch.arange(min(len(half), FROM_ROWS // 2))
        whole = _Local.around(unit[half], z[half], centres, near)
        chosen = torch.rand(len(centres), near, generator=generator).argsort(1)[:, :n]
        made.append(whole.rows.gather(1, chosen[..., None].expand(-1, -1, z.shape[1])))
        pairs.append((whole.own, whole.beside))
    varied = (z != z.mode(0).values).double().mean(0) > RARE  # of what hardly ever happens, nothing is known here
    own, beside = (torch.cat(part)[..., varied] for part in zip(*pairs, strict=True))
    shift = n * (_in_common(own, beside, moments=moments) - 2 / len(own) ** 0.5)
    why = (
        f"over {near} stored rows x changes with theta by {max(shift, 0.0) ** 0.5:.1f} standard errors of a set of {n}"
    )
    return Sets(made[0], made[1], f"{why}. Give simulator=..., or simulate more" if shift > RESOLVED else "")


@dataclass(frozen=True)
class _Local:
    """Local regressions around M centres.

    Attributes:
        rows: the nearest rows, brought to the centre, (M, K, C).
        own: the residual of the row at the centre, which had no part in the regression, in units of theirs, (M, C).
        beside: those of its nearest rows, (M, 3, C).
    """

    rows: Tensor
    own: Tensor
    beside: Tensor

    @classmethod
    def around(cls, theta: Tensor, z: Tensor, centres: Tensor, near: int) -> "_Local":
        parts = [cls._some(theta, z, some, near) for some in centres.split(100)]
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in ("rows", "own", "beside")))

    @classmethod
    def _some(cls, theta: Tensor, z: Tensor, centres: Tensor, near: int) -> "_Local":
        index = torch.cdist(theta[centres], theta).topk(near + 1, largest=False).indices
        index = torch.where(index == centres[:, None], index[:, -1:], index)[:, :near]  # each without itself
        step = theta[index] - theta[centres, None]
        inputs = torch.cat([torch.ones_like(step[..., :1]), step], 2)
        solve = torch.linalg.pinv(inputs)
        leverage = (inputs * solve.mT).sum(2, keepdim=True)
        line = solve @ z[index]
        left = (z[index] - inputs @ line) / (1 - leverage).clamp(min=0.1).sqrt()
        unit = (left.square().mean(1) + 0.01 * z.var(0)).sqrt().clamp(min=1e-12)
        return cls(line[:, :1] + left, (z[centres] - line[:, 0]) / unit, left[:, :3] / unit[:, None])


def _in_common(own: Tensor, beside: Tensor, *, moments: bool) -> float:
    """The largest correlation of functions of own (M, C) with the same of beside (M, 3, C)."""
    i, j = torch.triu_indices(own.shape[-1], own.shape[-1], 1)
    pairs = [(own.clamp(-4, 4), beside.clamp(-4, 4))]
    if moments:
        pairs.append(((own.square() + 0.01).log(), (beside.square() + 0.01).log()))
        pairs.append(((own[:, i] * own[:, j]).clamp(-4, 4), (beside[..., i] * beside[..., j]).clamp(-4, 4)))
    found = [0.0]
    for a, b in pairs:
        if a.shape[1]:
            centred, other = a - a.mean(0), b - b.mean((0, 1))
            together = (centred[:, None] * other).mean((0, 1))
            found.append(float((together / (a.std(0) * b.std((0, 1))).clamp(min=1e-12)).max()))
    return max(found)
