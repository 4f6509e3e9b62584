"""Polynomial morphing: weights at benchmark parameter points become weights at any theta."""

import math
from collections.abc import Sequence
from itertools import chain, combinations_with_replacement, product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_core.columns import to_column
from sbi_core.errors import InputError
from sbi_core.parameters import Parameter, names

_LARGE = 1e4
"""Condition number from which a benchmark matrix is flagged."""

_RANK = 1e-10
"""Singular values below this share of the largest are none."""

_CANDIDATES, _STARTS = 700, 5

_MOST, _SHOWN = 5000, 20
"""Coefficients, at most, and names of them in a message."""


class Monomials:
    """The C monomials m_c(theta) = prod_d t_d^p_cd that span a polynomial in D parameters.

    t is theta in units of its range, from -1 at `low` to 1 at `high`, so that nothing depends on the parameters' units.
    Where the monomials without the shift are not spanned by those with it (a table of powers with gaps, such as even
    ones alone), t is theta over the larger of |low| and |high| instead.

    Args:
        parameters: the D axes of theta, with finite ranges.
        degree: all monomials up to this total degree; or D numbers, the largest power of each parameter, and all their
            products; or a table of powers (C, D).

    Attributes:
        powers: (C, D), whole numbers.
        names: what the monomials are called, such as "1", "a", "a b", "b^2".

    Raises:
        InputError: for another degree, or a range that is not finite.

    Example:
        >>> Monomials([Parameter("a", -1, 1), Parameter("b", 0, 4)], 2).names
        ['1', 'a', 'b', 'a^2', 'a b', 'b^2']
    """

    def __init__(self, parameters: Sequence[Parameter], degree: Any = 2) -> None:
        self.parameters = tuple(parameters)
        low, high = (
            torch.tensor([getattr(p, end) for p in parameters], dtype=torch.float64) for end in ("low", "high")
        )
        distinct = len(set(names(self.parameters))) == len(low)
        if not len(low) or not distinct or not bool((high - low).isfinite().all()):
            ranges = [(p.name, p.low, p.high) for p in parameters]
            raise InputError(
                f"parameters: {ranges}, expected at least one, different names, and finite ranges to morph in."
            )
        self.powers = _powers(degree, len(low))
        self.names = [_name(row, names(self.parameters)) for row in self.powers.tolist()]
        self._low, self._width = low, high - low
        whole = _closed(self.powers.tolist())
        self._centre = (low + high) / 2 if whole else torch.zeros_like(low)
        self._scale = (high - low) / 2 if whole else torch.maximum(low.abs(), high.abs())

    def __len__(self) -> int:
        return len(self.powers)

    def __call__(self, theta: Tensor) -> Tensor:
        """m(theta) (*, C) at theta (*, D), float64, differentiable."""
        if theta.shape[-1:] != self._low.shape:
            raise InputError(f"theta has shape {tuple(theta.shape)}, expected (*, {len(self._low)}).")
        return _products((theta.to(torch.float64) - self._centre) / self._scale, self.powers)

    def undetermined(self, points: Tensor, rank: int) -> list[str]:
        """Names of the monomials of theta itself, not shifted, that values at points (B, D) leave open."""
        far = torch.maximum(self._low.abs(), (self._low + self._width).abs())
        right = torch.linalg.svd(_products(points / far, self.powers)).Vh
        return [
            name for name, lost in zip(self.names, (right[rank:].abs().amax(0) > 1e-6).tolist(), strict=True) if lost
        ]

    def points(self, count: int = 256) -> Tensor:
        """Thetas (T, D) that fill the ranges: `lattice` and as many quasi-random points, always the same."""
        sobol = torch.quasirandom.SobolEngine(len(self._low), scramble=True, seed=0)
        return torch.cat([self.lattice(count), self._low + self._width * sobol.draw(count, dtype=torch.float64)])

    def lattice(self, count: int = 256) -> Tensor:
        """Thetas (T, D) of an even lattice with ends and middles, 17, 9, 5 or 3 a parameter as `count` allows.

        Of many parameters it is all corners, and of more than 10 a random thousand of them.
        """
        dims = len(self._low)
        if dims > 10:
            sobol = torch.quasirandom.SobolEngine(dims, scramble=True, seed=1)
            return self._low + self._width * sobol.draw(1024, dtype=torch.float64).round()
        steps = next((k for k in (17, 9, 5, 3) if k**dims <= count), 2)
        places = product(torch.linspace(0, 1, steps, dtype=torch.float64).tolist(), repeat=dims)
        return self._low + self._width * torch.tensor(list(places), dtype=torch.float64)


class Morphing:
    """w(theta) = sum_b f_b(theta) w_b: a polynomial through its values at B benchmarks.

    With M_bc = m_c(theta_b), the coefficients of a weight known at the benchmarks are W = M^+ w, the least squares
    solution where B > C, and f(theta) = m(theta) M^+. All is exact if the weight is such a polynomial, as for an
    amplitude linear in theta (effective field theories; arXiv:1805.00020, eqs. 8 to 10, and the references there).

    Args:
        monomials: of the polynomial.
        benchmarks: (B, D).

    Attributes:
        benchmarks: (B, D), float64.
        condition: condition number of M, largest over smallest singular value.
        amplification: the largest sum_b |f_b(theta)| in the parameters' ranges: errors of the weights grow so much.
        flags: what a careful reader should know.

    Raises:
        InputError: for another shape, or benchmarks that do not determine all coefficients: it says which.

    Example:
        >>> line = Monomials([Parameter("a", -1, 1)], 1)
        >>> morphing = Morphing(line, [[-0.5], [0.5]])
        >>> round(morphing.condition, 6), morphing.amplification, morphing.weights(torch.tensor([1.0]))
        (2.0, 2.0, tensor([-0.5000,  1.5000], dtype=torch.float64))
    """

    def __init__(self, monomials: Monomials, benchmarks: Any) -> None:
        points = to_column("benchmarks", benchmarks).to(torch.float64)
        dims, labels = len(monomials.parameters), names(monomials.parameters)
        if points.ndim != 2 or points.shape[1] != dims or not len(points) or not bool(points.isfinite().all()):
            raise InputError(
                f"benchmarks have shape {tuple(points.shape)}, expected (B, {dims}), finite: a point of {labels} a row."
            )
        matrix = monomials(points)
        singular = torch.linalg.svdvals(matrix)
        rank = int((singular > _RANK * singular[0]).sum())
        if rank < len(monomials):
            lost = monomials.undetermined(points, rank)
            missing = ", ".join(map(repr, lost[:_SHOWN])) + (f" and {len(lost) - _SHOWN} others" * (len(lost) > _SHOWN))
            raise InputError(
                f"benchmarks: {len(points)} points determine {rank} of the {len(monomials)} coefficients, not those of "
                f"{missing}. Add {len(monomials) - rank} more that tell them apart (propose_benchmarks lists some), or "
                "lower the degree."
            )
        self.monomials = monomials
        self.benchmarks = points
        self.condition = float(singular[0] / singular[-1])
        self._inverse = torch.linalg.pinv(matrix, rtol=_RANK)
        self.amplification = float(self.weights(monomials.points()).abs().sum(-1).max())
        self.flags = self._flags()

    def coefficients(self, weights: Tensor) -> Tensor:
        """W (N, C) of weights (N, B) at the benchmarks."""
        return weights.to(torch.float64) @ self._inverse.T

    def weights(self, theta: Tensor) -> Tensor:
        """Morphing weights f_b(theta) (*, B) at theta (*, D)."""
        return self.monomials(theta) @ self._inverse

    def misfit(self, weights: Tensor, coefficients: Tensor) -> float:
        """Root mean square of what coefficients (N, C) leave of weights (N, B), as a share of that of the weights."""
        rest = coefficients @ self.monomials(self.benchmarks).T - weights
        return float(rest.square().mean().sqrt() / weights.square().mean().sqrt())

    def _flags(self) -> tuple[str, ...]:
        if self.condition < _LARGE:
            return ()
        return (
            f"benchmarks: their matrix has condition number {self.condition:.1e}, and rounding errors of the weights "
            f"grow up to {self.amplification:.1e} times. Spread the benchmarks over the parameters' ranges.",
        )


def propose_benchmarks(
    parameters: Sequence[Parameter], degree: Any = 2, *, count: int | None = None, fixed: Any = None
) -> Tensor:
    """Benchmarks whose squared morphing weights, summed and averaged over the parameters' ranges, are small.

    E sum_b f_b(theta)^2 = tr[G (M^T M)^-1] with G = E m m^T: an I-optimal design (Atkinson & Donev, Optimum
    Experimental Designs, 1992), found by exchanging one point after the other with the best of a lattice.

    Args:
        parameters: the D axes of theta.
        degree: as of `Monomials`.
        count: benchmarks B in all; by default as many as coefficients, or more if fixed ones tell nothing new.
        fixed: points (F, D) that must be among them, such as the standard model.

    Returns:
        (B, D), the fixed ones first.

    Raises:
        InputError: for fewer benchmarks than the fixed ones and those that determine what these leave open.

    Example:
        >>> propose_benchmarks([Parameter("a", -1, 1)], 2, fixed=[[0.0]])[:, 0]
        tensor([ 0., -1.,  1.], dtype=torch.float64)
    """
    monomials = Monomials(parameters, degree)
    kept = torch.zeros(0, len(parameters)) if fixed is None else to_column("fixed", fixed)
    kept = kept.to(torch.float64)
    fits = kept.ndim == 2 and kept.shape[1] == len(parameters) and bool(kept.isfinite().all())
    least = len(monomials)
    if fits and len(kept):
        singular = torch.linalg.svdvals(monomials(kept))
        least += len(kept) - int((singular > _RANK * singular[0]).sum())
    count = least if count is None else count
    if not fits or not isinstance(count, int) or count < least:
        raise InputError(
            f"count = {count} benchmarks, fixed has shape {tuple(kept.shape)}: expected at least {least}, one for each "
            "coefficient that the fixed points leave open beside these, and fixed points of shape (F, "
            f"{len(parameters)}), finite, among them."
        )
    candidates = monomials.lattice(_CANDIDATES) if len(parameters) < 7 else monomials.points(_CANDIDATES)
    if len(candidates) < 2 * count:
        candidates = torch.cat([candidates, monomials.points(2 * count)])
    within, rows = monomials(monomials.points(_CANDIDATES)[-_CANDIDATES:]), monomials(candidates)
    average, known = within.T @ within / len(within), monomials(kept).T @ monomials(kept)

    def costs(others: list[int]) -> Tensor:
        """Cost of each candidate r beside the others, with (M^T M + r r^T)^-1 by Sherman and Morrison."""
        gram = known + rows[others].T @ rows[others] + 1e-9 * torch.eye(len(monomials)).double()
        inverse = torch.linalg.inv(gram)
        reach = rows @ inverse
        return torch.trace(average @ inverse) - ((reach @ average) * reach).sum(1) / (1 + (reach * rows).sum(1))

    found = []
    for start in range(_STARTS):
        order = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(start))
        chosen, cost, before = order[: count - len(kept)].tolist(), float("inf"), None
        while chosen != before:
            before = list(chosen)
            for k in range(len(chosen)):
                every = costs(chosen[:k] + chosen[k + 1 :])
                best = int(every.argmin())
                if every[best] < every[chosen[k]] * (1 - 1e-9):
                    chosen[k] = best
                cost = float(every[chosen[k]])
        found.append((cost, chosen))
    return torch.cat([kept, candidates[sorted(min(found)[1])]])


def _products(unit: Tensor, powers: Tensor) -> Tensor:
    """Products (*, C) of powers (C, D) of scaled parameters (*, D), by multiplication alone."""
    ladder = [torch.ones_like(unit)]
    for _ in range(int(powers.max())):
        ladder.append(ladder[-1] * unit)
    table = torch.stack(ladder, -1)  # (*, D, P + 1)
    value = table[..., 0, :][..., powers[:, 0]]
    for d in range(1, unit.shape[-1]):
        value = value * table[..., d, :][..., powers[:, d]]
    return value


def _powers(degree: Any, dims: int) -> Tensor:
    """Powers (C, D) that a degree means, lowest total degree first."""
    try:
        table = np.asarray(degree)
    except ValueError:
        table = np.array("ragged")
    fits = table.shape in ((), (dims,)) or (table.ndim == 2 and table.shape[1] == dims and table.shape[0] > 0)
    if not fits or table.dtype.kind not in "iu" or (table < 0).any():
        raise InputError(
            f"degree = {degree!r}: expected a whole number, the total degree; {dims} of them, the largest power of "
            f"each parameter; or a table of powers (C, {dims})."
        )
    if table.ndim == 2:
        if len(np.unique(table, axis=0)) < len(table):
            raise InputError(f"degree: the table of {len(table)} powers names a monomial twice. Name each once.")
        return torch.from_numpy(table.astype(np.int64))
    count = math.prod(int(m) + 1 for m in table) if table.ndim else math.comb(dims + int(table), dims)
    if count > _MOST:
        raise InputError(
            f"degree = {degree!r} of {dims} parameters: {count:,} coefficients, expected at most {_MOST:,}."
        )
    rows: list[tuple[int, ...]]
    if table.ndim:
        rows = list(product(*(range(int(m) + 1) for m in table)))
    else:
        each = chain.from_iterable(combinations_with_replacement(range(dims), k) for k in range(int(table) + 1))
        rows = [tuple(map(factors.count, range(dims))) for factors in each]
    return torch.tensor(sorted(rows, key=lambda row: (sum(row), [-p for p in row])))


def _closed(powers: list[list[int]]) -> bool:
    """Whether each monomial's divisors are there too, so that shifted ones span the same polynomials."""
    known = {tuple(row) for row in powers}
    lower = ((*row[:d], p - 1, *row[d + 1 :]) for row in powers for d, p in enumerate(row) if p)
    return all(row in known for row in lower)


def _name(powers: list[int], labels: list[str]) -> str:
    factors = [label if p == 1 else f"{label}^{p}" for label, p in zip(labels, powers, strict=True) if p]
    return " ".join(factors) or "1"
