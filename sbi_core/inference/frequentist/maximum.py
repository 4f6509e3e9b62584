"""Uphill to the maximum of many log likelihoods at once, inside the parameters' ranges."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sbi_core.errors import InputError
from sbi_core.parameters import Parameter

Surface = Callable[[Tensor], Tensor]
"""theta (R, G, D) -> log likelihood of R problems, nats (R, G), with a gradient if theta has one."""

SCAN, STARTS = 256, 16
"""Points of the range that are looked at, and how many of them the climb to the maximum starts from."""

ROUNDS, SHORTER = 100, 12
"""Steps of a climb at most, and how often a step that does not go uphill is shortened."""

GAIN = 1e-9
"""Nats below which nothing is to be gained."""

EDGE = 1e-6
"""Share of the range from its end within which a maximum counts as being on the edge."""


@dataclass(frozen=True)
class Box:
    """Where theta may be: low (D,) and high (D,)."""

    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, axes: Sequence[Parameter]) -> "Box":
        """The parameters' ranges.

        Raises:
            InputError: if one has no end, or takes whole numbers only.
        """
        ends = torch.tensor([[a.low, a.high] for a in axes], dtype=torch.float64)
        if endless := [a.name for a, end in zip(axes, ends, strict=True) if not end.isfinite().all()]:
            raise InputError(
                f"parameters {endless} have no finite range; limits look for the maximum inside the range."
            )
        if whole := [a.name for a in axes if a.integer]:
            raise InputError(f"parameters {whole} take whole numbers only; limits of real ones are served.")
        return cls(ends[:, 0], ends[:, 1])

    @property
    def width(self) -> Tensor:
        """High minus low, (D,)."""
        return self.high - self.low

    def spread(self, n: int) -> Tensor:
        """n points that fill it evenly, (n, D), the same each time (Sobol, scrambled)."""
        unit = torch.quasirandom.SobolEngine(len(self.low), scramble=True, seed=0).draw(n, dtype=torch.float64)
        return self.low + self.width * unit

    def edges(self, theta: Tensor) -> Tensor:
        """-1 where theta (*, D) is on the low edge, 1 on the high one, 0 inside, (*, D)."""
        share = (theta - self.low) / self.width
        return (share > 1 - EDGE).long() - (share < EDGE).long()


@dataclass(frozen=True)
class Maximum:
    """What a climb found, of R problems with G starts each.

    Attributes:
        theta: (R, G, D).
        value: log likelihood there, nats (R, G).
    """

    theta: Tensor
    value: Tensor

    def best(self) -> "Maximum":
        """The highest of each problem, G = 1."""
        at = self.value.argmax(1, keepdim=True)
        return Maximum(
            self.theta.gather(1, at[..., None].expand(-1, -1, self.theta.shape[-1])), self.value.gather(1, at)
        )


def value_and_slope(surface: Surface, theta: Tensor, at_once: int = 10**6) -> tuple[Tensor, Tensor]:
    """Nats (R, G) and their gradient (R, G, D) at theta (R, G, D); impossible thetas have -inf and no slope.

    Raises:
        InputError: if the log likelihood does not carry a gradient.
    """
    values, slopes = [], []
    for part in theta.split(at_once, 1):
        leaf = part.detach().requires_grad_()
        with torch.enable_grad():
            value = surface(leaf)
            if not value.requires_grad:
                raise InputError("the estimator's log_likelihood carries no gradient in theta; write it with torch.")
            (slope,) = torch.autograd.grad(value.sum(), leaf)
        values.append(value.detach().nan_to_num(-torch.inf, -torch.inf, -torch.inf))
        slopes.append(slope.nan_to_num(0.0, 0.0, 0.0))
    return torch.cat(values, 1), torch.cat(slopes, 1)


def climb(
    surface: Surface,
    start: Tensor,
    box: Box,
    *,
    fixed: Sequence[int] = (),
    at_once: int = 10**6,
    covariance: Tensor | None = None,
    gain: float = GAIN,
) -> Maximum:
    """Go uphill from every start, by quasi-Newton steps projected on the box.

    BFGS for all climbs in one batch, with a backtracking line search of each; coordinates that lie on an edge and want
    to leave it are held (Bertsekas, SIAM J. Control Optim. 20 (1982) 221).

    Args:
        surface: what is climbed.
        start: (R, G, D), inside the box.
        box: the ranges.
        fixed: columns of theta that stay where they are.
        at_once: how many thetas of each problem are evaluated together.
        covariance: a guess of the inverse of minus the Hessian, (D, D), which saves steps.
        gain: a climb ends where the next step promises less than this, in nats.
    """
    u = (start.detach() - box.low) / box.width
    dims = u.shape[-1]
    free = torch.ones(dims, dtype=torch.bool)
    free[list(fixed)] = False

    def look(u: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = value_and_slope(surface, box.low + u * box.width, at_once)
        return value, slope * box.width * free

    value, slope = look(u)
    known = covariance is not None and bool(covariance.isfinite().all())
    first = torch.full(value.shape, not known)
    held = torch.zeros_like(u, dtype=torch.bool)
    curved = _short(slope)
    if covariance is not None and known:
        information = torch.linalg.inv(covariance / (box.width[:, None] * box.width))
        part = torch.zeros(dims, dims).double()
        part[free[:, None] & free] = torch.linalg.inv(information[free][:, free]).flatten()
        curved = part.expand_as(curved)
    going = value.isfinite()
    for _ in range(ROUNDS):
        before, held = held, ((u <= 0) & (slope < 0)) | ((u >= 1) & (slope > 0))
        up = torch.where(held, 0.0, slope)
        other = (held != before).any(-1)  # the curvature among those that are free now is not known
        first, curved = first | other, torch.where(other[..., None, None], _short(up), curved)
        step = torch.where(held, 0.0, (curved @ up[..., None])[..., 0])
        going = going & ((up * step).sum(-1) > gain)
        if not bool(going.any()):
            break
        size, moved = torch.ones_like(value), torch.zeros_like(going)
        new_u, new_value, new_slope = u, value, slope
        trying = going
        for _ in range(SHORTER):
            trial = torch.where(trying[..., None], (u + size[..., None] * step).clamp(0.0, 1.0), new_u)
            promised = (slope * (trial - u)).sum(-1)
            trial_value, trial_slope = look(trial)
            good = trying & (trial_value >= value + 1e-4 * promised)
            new_u = torch.where(good[..., None], trial, new_u)
            new_value = torch.where(good, trial_value, new_value)
            new_slope = torch.where(good[..., None], trial_slope, new_slope)
            moved |= good
            trying = trying & ~good & (promised > gain)
            if not bool(trying.any()):
                break
            size = torch.where(trying, size / 4, size)
        curved, first = _curved(curved, first, new_u - u, slope - new_slope, moved)
        u, value, slope, going = new_u, new_value, new_slope, going & moved
    return Maximum(box.low + u * box.width, value)


def _short(slope: Tensor) -> Tensor:
    """Inverse curvature (R, G, D, D) with which a first step along slope (R, G, D) is a twentieth of the box."""
    return torch.diag_embed(0.05 / slope.norm(dim=-1, keepdim=True).clamp(min=1e-12).expand_as(slope))


def _curved(curved: Tensor, first: Tensor, step: Tensor, fall: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
    """BFGS update of the inverse curvature (R, G, D, D) by a step and the fall of the slope along it, (R, G, D)."""
    product = (step * fall).sum(-1)
    good = moved & (product > 1e-12 * step.norm(dim=-1) * fall.norm(dim=-1)) & (product > 0)
    safe = torch.where(good, product, 1.0)
    scale = torch.where(good & first, safe / (fall * fall).sum(-1).clamp(min=1e-300), 1.0)
    eye = torch.eye(step.shape[-1], dtype=torch.float64)
    before = torch.where((good & first)[..., None, None], scale[..., None, None] * eye, curved)
    left = eye - step[..., :, None] * fall[..., None, :] / safe[..., None, None]
    after = left @ before @ left.mT + step[..., :, None] * step[..., None, :] / safe[..., None, None]
    return torch.where(good[..., None, None], after, curved), first & ~good


@torch.no_grad()
def values(surface: Surface, theta: Tensor, at_once: int = 10**6) -> Tensor:
    """Nats (R, G) at theta (R, G, D), in parts; -inf where it is impossible."""
    found = torch.cat([surface(part) for part in theta.split(at_once, 1)], 1)
    return found.nan_to_num(-torch.inf, -torch.inf, -torch.inf)


def maxima(surface: Surface, box: Box, at_once: int = 10**6) -> Maximum:
    """All ends of climbs of one problem from the best and from evenly spread points of the box, (1, STARTS, D).

    Raises:
        InputError: if the likelihood is zero, or not a number, everywhere.
    """
    points = box.spread(SCAN)[None]
    scanned = values(surface, points, at_once)
    if not bool(scanned.isfinite().any()):
        raise InputError("the likelihood of x_obs is zero, or not a number, everywhere in the parameters' ranges.")
    order = scanned[0].argsort(descending=True)
    possible = order[scanned[0][order].isfinite()]
    chosen = torch.cat([possible[:4], possible[4:].sort().values[: STARTS - 4]])
    return climb(surface, points[:, chosen], box, at_once=at_once)


def information(surface: Surface, theta: Tensor, box: Box) -> Tensor:
    """Observed information -d^2 log L / d theta^2 at theta (D,), (D, D): central differences of the gradient.

    The differences lie inside the box, over a tenth of the standard deviation that a first try over a thousandth of
    the range gives.
    """
    step = 1e-3 * box.width
    first = _differences(surface, theta, box, step).diagonal().clamp(min=0.0)
    return _differences(surface, theta, box, (0.1 / first.sqrt()).clamp(1e-7 * box.width, 1e-2 * box.width))


def _differences(surface: Surface, theta: Tensor, box: Box, step: Tensor) -> Tensor:
    """Minus the second derivatives (D, D) by central differences with steps (D,)."""
    dims = len(theta)
    centre = torch.minimum(torch.maximum(theta, box.low + step), box.high - step)
    offsets = torch.cat([torch.diag(step), -torch.diag(step)])
    slope = value_and_slope(surface, (centre + offsets)[None])[1][0]
    found = (slope[dims:] - slope[:dims]) / (2 * step[:, None])
    return (found + found.T) / 2
