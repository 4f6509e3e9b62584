"""Fisher information of an estimator, expected and observed, with its uncertainty and with nuisances profiled."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sbi_core.columns import to_column
from sbi_core.errors import InputError, nearest
from sbi_core.estimators.ensemble import Ensemble
from sbi_core.estimators.reference import is_at, weights_at
from sbi_core.estimators.score import ScoreEstimator
from sbi_core.parameters import Parameter, names
from sbi_core.simulations import Rows, Simulations
from sbi_core.simulator import Simulator

_AT_ONCE = 4096

_BIASED = 0.1
"""Mean of the score, in standard deviations of the score, from which it is said."""


@dataclass(frozen=True)
class FisherInformation:
    """A Fisher information matrix.

    Attributes:
        parameters: names of the D axes.
        theta: where it is taken, (D,).
        matrix: I, one over the units of the two parameters, (D, D).
        covariance: of its elements, (D, D, D, D); NaN where nothing tells it.
        kind: "expected" or "observed".
        flags: what a careful reader should know.
    """

    parameters: tuple[str, ...]
    theta: Tensor
    matrix: Tensor
    covariance: Tensor
    kind: str
    flags: tuple[str, ...] = ()

    @property
    def error(self) -> Tensor:
        """Standard error of each element, (D, D)."""
        size = self.matrix.numel()
        return self.covariance.reshape(size, size).diagonal().clamp(min=0).sqrt().reshape(self.matrix.shape)

    @property
    def bounds(self) -> Tensor:
        """Cramer-Rao bound on the standard deviation of each parameter, all others being fitted too, (D,)."""
        return torch.linalg.inv(self.matrix).diagonal().clamp(min=0).sqrt()

    def profiled(self, of: Sequence[str]) -> "FisherInformation":
        """Information on some parameters A when the others B are fitted too: I_AA - I_AB I_BB^-1 I_BA.

        That is the inverse of the block AA of the inverse of I; the error follows to first order.

        Args:
            of: names of the parameters A, in the order wanted.

        Raises:
            InputError: for unknown, repeated or no names.
        """
        for name in of:
            if name not in self.parameters:
                raise InputError(f"of: there is no parameter '{name}'; {nearest(name, self.parameters)}")
        if isinstance(of, str) or not of or len(set(of)) < len(of):
            raise InputError(f"of = {of!r}, expected one or more names of {list(self.parameters)}, each once.")
        kept = [self.parameters.index(name) for name in of]
        rest = [k for k in range(len(self.parameters)) if k not in kept]
        way = torch.zeros(len(kept), len(self.parameters), dtype=self.matrix.dtype)
        way[range(len(kept)), kept] = 1.0
        if rest:
            way[:, rest] = -self.matrix[kept][:, rest] @ torch.linalg.pinv(self.matrix[rest][:, rest], hermitian=True)
        covariance = torch.einsum("ia,jb,abcd,kc,ld->ijkl", way, way, self.covariance, way, way)
        matrix = way @ self.matrix @ way.T
        return replace(self, parameters=tuple(of), theta=self.theta[kept], matrix=matrix, covariance=covariance)


def fisher_information(
    estimator: Any,
    data: Rows,
    theta: Any = None,
    *,
    n: float = 1.0,
    simulator: Simulator | None = None,
    seed: int = 0,
) -> FisherInformation:
    """Expected information: n times the covariance of the score grad_theta log p(x | theta) over rows of theta.

    The score of a `ScoreEstimator` at its theta_ref is what it learned, of any other estimator or oracle the gradient
    of its log likelihood. The exact score has mean zero; a learned one has not quite, and where only ratios are
    learned the surplus is the slope of a term without x. So the mean is taken off, and a flag says if it was large.
    The error is the standard error over rows and, for an `Ensemble`, whose score is the mean of its members', the
    standard deviation of its members' matrices, in quadrature. Brehmer et al., arXiv:1612.05261.

    Args:
        estimator: anything with `log_likelihood`: an estimator, or a simulator that knows its own.
        data: N rows simulated at theta; with their designs, if any, which are averaged over.
        theta: (D,); by default that of the rows.
        n: independent events; with a rate sigma and a luminosity L, n = L sigma, and the information in the number of
            events, L grad sigma grad sigma^T / sigma, comes on top.
        simulator: gives weights to rows of other thetas (see `at_reference`).
        seed: fixes those weights.

    Raises:
        InputError: for rows of other thetas without a simulator, or with too small an effective sample size.
    """
    axes: tuple[Parameter, ...] = getattr(estimator, "axes", None) or estimator.parameters
    rows = data[:].reordered(axes, estimator.designs)
    rows = rows[rows.valid]
    if len(rows) < 2:
        raise InputError(f"data: {len(rows)} valid rows, expected at least 2.")
    at = rows.theta[0] if theta is None else _theta(theta, axes)
    weight, flags = torch.ones(len(rows), dtype=torch.float64), list[str]()
    if not is_at(rows, at):
        if simulator is None:
            raise InputError(
                f"data: the rows are not all of theta = {at.tolist()}. Give rows from simulate(simulator, n, "
                f"proposal={at.tolist()}), or simulator=..., which weights them."
            )
        weight, flag = weights_at(rows, simulator, at, seed=seed)
        flags.append(flag)
    share = weight / weight.sum()
    scores = torch.stack([_scores(member, rows, at) for member in _members(estimator)])
    matrix, terms, mean = _covariance(scores.mean(0), share)
    biased = [axis.name for axis, m, v in zip(axes, mean, matrix.diagonal(), strict=True) if m**2 > _BIASED**2 * v]
    if biased:
        flags.append(f"the mean score, which should be zero, is above {_BIASED} of its spread for {', '.join(biased)}")
    away = (terms - matrix.flatten()) * share[:, None]
    members = torch.stack([_covariance(score, share)[0] for score in scores])
    covariance = away.T @ away + (_spread(members) if len(members) > 1 else 0.0)
    return _record(axes, at, n * matrix, n**2 * covariance, "expected", flags)


def observed_information(
    estimator: Any,
    x_obs: Any,
    theta: Any,
    *,
    design: Tensor | None = None,
    n_events: Tensor | None = None,
    iid: bool = False,
) -> FisherInformation:
    """Observed information: minus the Hessian of log p(x_obs | theta) in theta, summed over x_obs if `iid`.

    The Hessian of a `ScoreEstimator` is that of its local model, so it does not depend on x_obs. The error is the
    standard deviation over the members of an `Ensemble`, otherwise NaN: nothing tells it. Efron & Hinkley,
    Biometrika 65 (1978) 457.

    Args:
        estimator: anything with `log_likelihood`.
        x_obs: one observation (*event), or with `iid` several (n, *event).
        theta: (D,), for instance the best fit.
        design: of x_obs, (K,) or (n, K).
        n_events: of runs of events, () or (n,).
        iid: whether x_obs has a leading axis of independent draws.

    Raises:
        InputError: for a theta of another length.
    """
    axes: tuple[Parameter, ...] = getattr(estimator, "axes", None) or estimator.parameters
    at, x = _theta(theta, axes), to_column("x_obs", x_obs)
    columns = {"x": x if iid else x[None]}
    for name, value in (("design", design), ("n_events", n_events)):
        if value is not None:
            event = 1 if name == "design" else 0
            columns[name] = value if value.ndim > event else value.expand(len(columns["x"]), *value.shape)
    each = torch.stack([_minus_hessian(member, columns, at) for member in _members(estimator)])
    size = each[0].numel()
    covariance = _spread(each) if len(each) > 1 else torch.full((size, size), torch.nan, dtype=torch.float64)
    return _record(axes, at, each.mean(0), covariance, "observed", [])


def _record(
    axes: Sequence[Parameter], theta: Tensor, matrix: Tensor, covariance: Tensor, kind: str, flags: Sequence[str]
) -> FisherInformation:
    shape = (*matrix.shape, *matrix.shape)
    return FisherInformation(tuple(names(axes)), theta, matrix, covariance.reshape(shape), kind, tuple(flags))


def _theta(theta: Any, axes: Sequence[Parameter]) -> Tensor:
    at = to_column("theta", theta)
    if at.shape != (len(axes),):
        raise InputError(f"theta has shape {tuple(at.shape)}, expected ({len(axes)},) for {names(axes)}.")
    return at


def _members(estimator: Any) -> list[Any]:
    return list(estimator.members) if isinstance(estimator, Ensemble) else [estimator]


def _covariance(score: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted covariance (D, D) of scores (N, D), the terms (N, D * D) whose mean it is, and their mean (D,)."""
    mean = share @ score
    away = score - mean
    terms = (away[:, :, None] * away[:, None]).flatten(1) / (1 - share.square().sum())
    return (share @ terms).reshape(len(mean), len(mean)), terms, mean


def _spread(matrices: Tensor) -> Tensor:
    """Covariance (D * D, D * D) of matrices (M, D, D)."""
    away = (matrices - matrices.mean(0)).flatten(1)
    return away.T @ away / (len(matrices) - 1)


def _pieces(columns: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    for k in range(0, len(columns["x"]), _AT_ONCE):
        yield {name: value[k : k + _AT_ONCE] for name, value in columns.items()}


def _scores(estimator: Any, rows: Simulations, theta: Tensor) -> Tensor:
    """grad_theta log p(x | theta) of every row, (N, D)."""
    if isinstance(estimator, ScoreEstimator) and bool(torch.isclose(theta, estimator.theta_ref, rtol=1e-6).all()):
        return estimator.score_of(rows)
    columns = {name: getattr(rows, name) for name in ("x", "design", "n_events") if getattr(rows, name) is not None}
    found = []
    for piece in _pieces(columns):
        leaf = theta.expand(len(piece["x"]), -1).clone().requires_grad_()
        value = estimator.log_likelihood(leaf, **piece).double().sum()
        found.append(torch.autograd.grad(value, leaf)[0].detach())
    return torch.cat(found)


def _minus_hessian(estimator: Any, columns: dict[str, Tensor], theta: Tensor) -> Tensor:
    """Minus the second derivatives of the summed log likelihood, (D, D)."""
    total = torch.zeros(len(theta), len(theta), dtype=torch.float64)
    for piece in _pieces(columns):
        leaf = theta.clone().requires_grad_()
        value = estimator.log_likelihood(leaf.expand(len(piece["x"]), -1), **piece).double().sum()
        slope = torch.autograd.grad(value, leaf, create_graph=True)[0]
        if slope.requires_grad:
            total -= torch.stack([torch.autograd.grad(part, leaf, retain_graph=True)[0] for part in slope])
    return (total + total.T) / 2
