"""What the tests of gold are made of: features of rows, and fits that take away what is known."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from sbi_core.gold import blocks
from sbi_core.simulations import Simulations


def features(rows: Simulations) -> list[tuple[str, Tensor]]:
    """At most four standardised numbers a row, of x and of z: the means and one fixed random projection of each."""
    found = []
    for label, column in (("x", rows.x), ("z", rows.z)):
        if column is None or not column[:1].numel():
            continue
        parts = list(_standard_blocks(column))
        middle, projected, square = (torch.cat(feature) for feature in zip(*parts, strict=True))
        found.append((f"{label}: mean", middle))
        if column[0].numel() > 1:
            found.append((f"{label}: projection", projected))
        found.append((f"{label}: square", square))
    found = [(label, standard(feature[:, None])[:, 0]) for label, feature in found]
    return [(label, feature) for label, feature in found if bool(feature.any())]


def _standard_blocks(column: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Mean, random projection and mean square of the standardised numbers of each row, (B,) each, block by block."""
    parts = list(blocks(column))

    def read(part: slice) -> Tensor:
        return column[part].to(torch.float64).flatten(1)

    mean = torch.stack([read(part).sum(0) for part in parts]).sum(0) / len(column)
    spread = (torch.stack([(read(part) - mean).square().sum(0) for part in parts]).sum(0) / len(column)).sqrt()
    largest = max(float(read(part).abs().max()) for part in parts)
    direction = torch.from_numpy(np.random.default_rng(0).standard_normal(len(mean))).to(mean)
    for part in parts:
        unit = (read(part) - mean) / spread.clamp(min=1e-12 * largest + 1e-300)
        yield unit.mean(1), unit @ direction, unit.square().mean(1)


def less_linear(terms: Tensor, theta: Tensor, score: Tensor) -> Tensor:
    """Terms (N,) less what is linear in the scores (N, D), which has mean zero at every theta and only adds noise."""
    unit = standard(theta)
    powers = torch.cat([torch.ones_like(unit[:, :1]), unit, unit**2], 1)
    columns = (score[:, :, None] * powers[:, None]).flatten(1)
    return terms - (crossfit(columns, terms)[1] * columns).sum(1)


def local_size(theta: Tensor, values: Tensor) -> Tensor:
    """Typical size of values (N, V) at each theta (N, D): weights of theta alone leave every conditional mean zero."""
    floor = 0.1 * values.square().mean(0).clamp(min=1e-300)
    unit = standard(theta)
    axes = theta.T.contiguous()
    ends = [torch.searchsorted(axes.sort(1).values.contiguous(), axes, right=last) for last in (False, True)]
    rank = torch.special.ndtri(((ends[0] + ends[1]).to(theta) / (2 * len(theta))).T)  # heavy tails too; ties share one
    terms = torch.cat([unit, unit**2, rank, rank**2], 1)
    each = [crossfit(terms, torch.log(values[:, k] ** 2 + floor[k]))[0] for k in range(values.shape[1])]
    return torch.exp(torch.stack(each, 1) / 2)


def crossfit(terms: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Linear trend of a target (N,) in terms (N, T), each half of the rows with the other half's fit: value, slopes."""
    half = torch.arange(len(terms)) % 2 == 0
    ones = torch.cat([torch.ones_like(terms[:, :1]), terms], 1)
    parts = ((ones[part], target[part, None]) for part in (~half, half))
    fits = [torch.linalg.lstsq(*part, driver="gelsd").solution[:, 0] for part in parts]  # theta may be constant
    coefficients = torch.where(half[:, None], fits[0], fits[1])
    return (ones * coefficients).sum(1), coefficients[:, 1:]


def standard(columns: Tensor) -> Tensor:
    """Columns (N, V) less their means, over their standard deviations."""
    centred = columns - columns.mean(0)
    return centred / centred.square().mean(0).sqrt().clamp(min=1e-12 * float(columns.abs().max() + 1e-300))
