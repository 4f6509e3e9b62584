"""What a learned log likelihood gets wrong in all observations alike, and how to take it away."""

import functools
import math
from collections.abc import Sequence
from itertools import combinations_with_replacement

import torch
from torch import Tensor, nn

from sbi_core.estimators.scaling import ScoreScale
from sbi_core.parameters import Parameter

ROWS = 50_000
"""Rows on which c is fitted, at most."""

_TERMS = 100
"""Terms of the polynomial, at most."""

_HIGHEST = 10
"""Its degree, at most."""

_DECADE = 10.0
"""Positive parameters whose range spans this factor or more enter as logarithms."""

_FEWEST = 10
"""Numbers of the scores for each term, at least."""

_PRIOR = 2
"""Rows for each parameter, with the second moments of all rows, that are added to those near a row."""

_SURE = 5.0
"""Standard deviations above chance of what the terms explain: f may be better than the mean of N rows can tell."""

_AT_ONCE = 4_000_000


class Centring(nn.Module):
    """c(theta, design), whose gradient in theta is the mean over x at that theta of grad_theta f(theta, x).

    The true log likelihood has E[grad log p(x | theta) | theta] = 0 (Bartlett, Biometrika 40 (1953) 12), unless the
    support of x moves with theta, so f - c is nearer to it. One observation hardly notices c. In the sum over n of them
    an error common to all grows like n, and what the observations say like sqrt(n), so that populations come out biased
    and too sure.

    c is a polynomial in the coordinates of theta and design, each on (-1, 1) over the range of the rows; a positive
    parameter whose range spans a factor of ten enters as its logarithm. Its gradient is fitted to the learned score of
    rows by least squares, in units in which the score is white everywhere. The degree has the lowest Mallows' C_p
    (Technometrics 15 (1973) 661), with the terms' variance from the rows themselves (White, Econometrica 48 (1980)
    817), among those that explain what chance does not; if there is none, f stays as it is. c is about as sure as the
    mean of N scores. Beyond the range of the rows it is constant.

    Args:
        parameters: the D axes of theta.
        designs: the K axes of the design.

    Attributes:
        degree: that of the polynomial; 0 before `fit`, or if f needs no correction.
    """

    powers: Tensor
    ends: Tensor
    coefficients: Tensor

    def __init__(self, parameters: Sequence[Parameter], designs: Sequence[Parameter] = ()) -> None:
        super().__init__()
        axes = (*parameters, *designs)
        self.dims = len(parameters)
        self.logarithmic = [axis.low > 0 and axis.high / axis.low >= _DECADE for axis in axes]
        self.register_buffer("powers", _powers(len(axes), self.dims), persistent=False)
        self.register_buffer("ends", torch.stack([torch.zeros(len(axes)), torch.ones(len(axes))]).double())
        self.register_buffer("coefficients", torch.zeros(len(self.powers), dtype=torch.float64))

    @property
    def degree(self) -> int:
        """Total degree of the terms in use."""
        used = self.powers[self.coefficients != 0]
        return int(used.sum(1).max()) if len(used) else 0

    def fit(self, theta: Tensor, score: Tensor, design: Tensor | None = None) -> None:
        """Learn c from the learned score (N, D) of N rows, each at its own theta (N, D) and design (N, K)."""
        self.coefficients.zero_()
        if not bool(score.double().square().sum().isfinite()) or not bool(score.any()):
            return
        given = self._given(theta.double(), design)
        self.ends.copy_(torch.stack([given.amin(0), given.amax(0)]))
        place, slope = (torch.stack(each, -1) for each in zip(*self._places(given), strict=True))
        inside = slope[:, : self.dims] > 0
        score = torch.where(inside, score.double() / torch.where(inside, slope[:, : self.dims], 1.0), 0.0)
        cell, whitening = _whitening(place[:, : self.dims], score)
        degrees, size = self.powers.sum(1), len(self.powers)
        gram, spread = torch.zeros(2, size, size, dtype=torch.float64)
        moment = torch.zeros(size, dtype=torch.float64)
        for rows in torch.arange(len(theta)).split(max(1, _AT_ONCE // self.powers.numel())):
            white = whitening[rows % 2, cell[rows]]
            slopes = white @ self._slopes(place[rows])
            each = (slopes.mT @ (white @ score[rows, :, None]))[..., 0]
            gram += torch.einsum("ndt,ndu->tu", slopes, slopes)
            spread += each.T @ each
            moment += each.sum(0)
        best = 0.0
        for degree in range(1, int(degrees.max()) + 1):
            used = degrees <= degree
            if int(used.sum()) * _FEWEST > score.numel():
                break
            wanted = torch.cat([moment[used, None], spread[used][:, used]], 1)
            solved = torch.linalg.lstsq(gram[used][:, used], wanted, driver="gelsd").solution
            explained, chance = float(solved[:, 0] @ moment[used]), float(solved[:, 1:].trace())
            sure = explained - chance > _SURE * math.sqrt(2 * chance)
            if sure and explained - 2 * chance > best:
                best = explained - 2 * chance
                self.coefficients.zero_()[used] = solved[:, 0]

    def forward(self, theta: Tensor, design: Tensor | None = None) -> Tensor:
        """c in nats (*), float64, at theta (*, D) and design (*, K)."""
        used, degree = self.coefficients != 0, max(1, self.degree)
        along = [_chebyshev(place, degree)[0] for place, _ in self._places(self._given(theta.double(), design))]
        return _product([part[..., self.powers[used, k]] for k, part in enumerate(along)]) @ self.coefficients[used]

    def _given(self, theta: Tensor, design: Tensor | None) -> Tensor:
        """Theta and design side by side (*, D + K)."""
        if design is None:
            return theta
        design = design.double()
        wide = torch.broadcast_shapes(theta.shape[:-1], design.shape[:-1])
        return torch.cat([theta.expand(*wide, -1), design.expand(*wide, -1)], -1)

    def _places(self, given: Tensor) -> list[tuple[Tensor, Tensor]]:
        """For each axis of (*, D + K): where in (-1, 1) it is, and the slope of that, 0 beyond the ends, (*) each."""
        found = []
        for value, (low, high), logarithmic in zip(given.unbind(-1), self.ends.T, self.logarithmic, strict=True):
            inside = value.clamp(low, high)
            if logarithmic and low > 0:
                half, place, unit = (high.log() - low.log()) / 2, inside.log() - (high.log() + low.log()) / 2, inside
            else:
                half, place, unit = (high - low) / 2, inside - (high + low) / 2, torch.ones_like(inside)
            varies = half > 0
            slope = torch.where((value == inside) & varies, 1 / (half * unit), 0.0)
            found.append((place / half if varies else 0 * place, slope))
        return found

    def _slopes(self, place: Tensor) -> Tensor:
        """Gradients of the terms in the places of theta, (*, D, T), at places (*, D + K)."""
        along = [
            [part[..., self.powers[:, k]] for part in _chebyshev(each, int(self.powers.max()))]
            for k, each in enumerate(place.unbind(-1))
        ]
        values = [value for value, _ in along]
        each = [_product([along[k][1], *values[:k], *values[k + 1 :]]) for k in range(self.dims)]
        return torch.stack(each, -2)


def _product(factors: Sequence[Tensor]) -> Tensor:
    return functools.reduce(torch.mul, factors)


def _whitening(place: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
    """The cell of each row, (N,), and S^(-1/2) of the second moments S of the score in each, (2, cells, D, D).

    The first is for rows of even number and from those of odd number, the second for these: where scores are skewed, a
    row's own would bias its mean.
    """
    dims, cell = score.shape[1], ScoreScale.of(place, score).cell
    everywhere, found = score.T @ score / len(score), []
    unit = everywhere.diagonal().clamp(min=1e-300)
    for half in (1, 0):
        local = torch.zeros(int(cell.max()) + 1, dims, dims, dtype=torch.float64)
        count = torch.bincount(cell[half::2], minlength=len(local)).double()[:, None, None]
        for rows in torch.arange(half, len(score), 2).split(max(1, _AT_ONCE // dims**2)):
            local.index_add_(0, cell[rows], score[rows, :, None] * score[rows, None])
        size = (local / unit).diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        size = (size + _PRIOR) / (count + _PRIOR)
        values, vectors = torch.linalg.eigh((local + _PRIOR * dims * size * everywhere) / (count + _PRIOR * dims))
        values = values.clamp(min=1e-9 * values.amax(1, keepdim=True))
        found.append(vectors * values.rsqrt()[:, None] @ vectors.mT)
    return cell, torch.stack(found)


def _powers(axes: int, dims: int) -> Tensor:
    """Degree in each axis of the terms that depend on theta, the first `dims` axes, (T, axes)."""
    highest = max(d for d in range(1, _HIGHEST + 1) if d == 1 or math.comb(axes + d, d) <= _TERMS)
    terms = (term for d in range(1, highest + 1) for term in combinations_with_replacement(range(axes), d))
    return torch.tensor([[term.count(axis) for axis in range(axes)] for term in terms if term[0] < dims])


def _chebyshev(place: Tensor, degree: int) -> tuple[Tensor, Tensor]:
    """Chebyshev polynomials of degrees up to `degree` and their derivatives at places (*), (*, degree + 1) each."""
    values, slopes = [torch.ones_like(place), place], [torch.zeros_like(place), torch.ones_like(place)]
    for _ in range(degree - 1):
        slopes.append(2 * values[-1] + 2 * place * slopes[-1] - slopes[-2])
        values.append(2 * place * values[-1] - values[-2])
    return torch.stack(values[: degree + 1], -1), torch.stack(slopes[: degree + 1], -1)
