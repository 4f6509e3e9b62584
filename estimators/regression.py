"""Where heads that read plain numbers start: linear regression with Gaussian residuals, which networks then correct."""

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

ENOUGH = 5
"""Rows for each column of value and context, from which a regression is made."""

WIDEST = 256
"""Columns of the value, at most: beyond, the matrix of residuals costs more than the network."""

STEPS = 100
"""Iterations of `refine`, at most."""

_RIDGE = 1e-6
"""Added to the residuals' variance, in standard units, so that copies of a column do no harm."""


class Density(Protocol):
    """What a flow can do."""

    def log_prob(self, value: Tensor, context: Tensor) -> Tensor: ...  # noqa: D102

    def sample(self, context: Tensor, n: int) -> Tensor: ...  # noqa: D102


class GaussianRegression(nn.Module):
    """p(value | context) with standard normal residuals root value - shift - slope context, root lower triangular.

    It is known in closed form, so a head starts with it and its network learns the rest: in ten linear-Gaussian
    dimensions and from 1000 rows, nothing is left to learn. In these numbers -log p is convex. Until `adapt` it is the
    standard normal.

    Args:
        width: columns W of the value.
        context: columns C of the context.

    Attributes:
        used: false for the standard normal.
        alone: while true, heads leave their networks out.
    """

    slope: Tensor
    shift: Tensor
    root: Tensor

    def __init__(self, width: int, context: int) -> None:
        super().__init__()
        self.used = self.alone = False
        self.register_buffer("slope", torch.zeros(width, context))
        self.register_buffer("shift", torch.zeros(width))
        self.register_buffer("root", torch.eye(width))

    def _load_from_state_dict(self, *state: Any) -> None:
        super()._load_from_state_dict(*state)
        self.used = bool(self.slope.any())

    @torch.no_grad()
    def adapt(self, value: Tensor, context: Tensor) -> None:
        """Maximum likelihood on rows value (N, W), context (N, C); the standard normal if the rows are too few."""
        self.leave_out()
        width, columns = self.slope.shape
        if width > WIDEST or len(value) < ENOUGH * (width + columns + 1):
            return
        value, unity = value.double(), torch.eye(width, dtype=torch.float64)
        given = torch.cat([torch.ones(len(value), 1), context], 1).double()
        found = torch.linalg.lstsq(given, value, driver="gelsd").solution  # context may hold one column twice
        residual = value - given @ found
        covariance = residual.T @ residual / (len(value) - columns - 1) + _RIDGE * unity
        root = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), unity, upper=False)
        self.shift.copy_(root @ found[0])
        self.slope.copy_(root @ found[1:].T)
        self.root.copy_(root)
        self.used = True

    @torch.no_grad()
    def leave_out(self) -> None:
        """Become the standard normal."""
        self.used = False
        self.slope.zero_()
        self.shift.zero_()
        self.root.copy_(torch.eye(len(self.root)))

    def look(self, value: Tensor) -> Callable[[Tensor], Tensor]:
        """Take value (*, W) once: the function from context (*, C) to residuals (*, W)."""
        fixed = linear(value, self.root.tril(), -self.shift)
        return lambda context: fixed - linear(context, self.slope)

    def log_prob(self, flow: Density, value: Tensor, context: Tensor) -> Tensor:
        """log p(value | context) in nats, value (N, W), context (N, C), (N,), where the flow has the residuals."""
        residual = self.look(value)(context) if self.used else value
        if self.alone:
            found = -0.5 * residual.square().sum(-1) - 0.5 * residual.shape[-1] * math.log(2 * math.pi)
        else:
            found = flow.log_prob(residual, context)
        return found + self.root.diagonal().abs().log().sum()

    @torch.no_grad()
    def sample(self, flow: Density, context: Tensor, n: int) -> Tensor:
        """Draw n values for each row of context (N, C), (N, n, W), float64, from torch's global random state."""
        residual = flow.sample(context, n).double()
        if not self.used:
            return residual
        moved = residual + linear(context, self.slope, self.shift).double()[:, None]
        root = self.root.tril().double()
        return torch.linalg.solve_triangular(root, moved.flatten(0, 1).T, upper=False).T.view_as(residual)


def refine(regression: GaussianRegression, loss: Callable[[], Tensor]) -> None:
    """Move a regression to the minimum of a loss that reads it alone, with L-BFGS; if that fails, it stays."""
    parts = list(regression.buffers())
    before = [part.clone() for part in parts]
    optimizer = torch.optim.LBFGS(parts, max_iter=STEPS, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    regression.alone, end = True, math.nan
    try:
        start = float(loss().detach())
        for part in parts:
            part.requires_grad_()
        optimizer.step(closure)
        end = float(loss().detach())
    except RuntimeError:  # L-BFGS after a step that is not finite
        pass
    finally:
        regression.alone = False
        for part in parts:
            part.requires_grad_(False)
            part.grad = None
    if not end <= start:
        for part, old in zip(parts, before, strict=True):
            part.copy_(old)
