"""Two moons: a crescent that theta moves about, with two thetas to every place."""

import math

import torch
from torch import Tensor

from sbi_core.parameters import Parameter
from sbi_core.simulator import Simulator

_RADIUS, _WIDTH, _OFFSET = 0.1, 0.01, 0.25


class TwoMoons(Simulator):
    """theta in [-1, 1]^2 shifts a crescent of radius 0.1; its posterior is two crescents, mirror images of each other.

    x = (r cos a + 0.25, r sin a) + (-|theta_1 + theta_2|, theta_2 - theta_1) / sqrt 2, a ~ U(-pi/2, pi/2),
    r ~ N(0.1, 0.01^2). With (u, v) the first bracket without the 0.25 and r = |(u, v)|, where u > 0,

        p(x | theta) = N(r; 0.1, 0.01^2) / (pi r),

    and 0 elsewhere: this leaves out r < 0, which has probability 8e-24. The published code leaves out the 1 / (pi r) in
    its likelihood, though not in its reference posteriors. (theta_1, theta_2) and (-theta_2, -theta_1) are the same.

    There is no gold here. The straight edge u = 0 of the crescent moves with theta and p jumps there, so the gradient
    of log p has a mean, -sign(theta_1 + theta_2) sqrt(2) E[1 / r] / pi = -+4.55 along each axis, where a score has
    none: what flows over the edge is missing. A log_joint would state that gradient as the score, hence none is given;
    a and r as latents have the same edge. Source: Lueckmann et al., arXiv:2101.04653, T.8.

    Example:
        >>> at = torch.tensor([[0.3, 0.2], [-0.2, -0.3], [0.3, -0.2]])
        >>> TwoMoons().log_likelihood(at, torch.tensor([0.0, -0.05]))
        tensor([4.6325, 4.6325,   -inf], dtype=torch.float64)
    """

    parameters = tuple(Parameter(f"theta_{k}", -1.0, 1.0, latex=rf"\theta_{k}") for k in (1, 2))
    x_shape = (2,)

    def sample(self, theta: Tensor, design: Tensor | None, generator: torch.Generator) -> tuple[Tensor, None]:
        """Draw x (M, 2) at theta (M, 2); no latents are kept."""
        angle = math.pi * (torch.rand(len(theta), generator=generator, dtype=torch.float64) - 0.5)
        radius = _RADIUS + _WIDTH * torch.randn(len(theta), generator=generator, dtype=torch.float64)
        return _centre(theta) + torch.stack([radius * angle.cos(), radius * angle.sin()], -1), None

    def log_likelihood(self, theta: Tensor, x: Tensor, design: Tensor | None = None) -> Tensor:
        """Exact log p(x | theta), theta (*, 2), x (*, 2), broadcasting to (*); minus infinity outside the crescent."""
        u, v = (x.to(torch.float64) - _centre(theta.to(torch.float64))).unbind(-1)
        inside = u > 0
        radius = torch.hypot(torch.where(inside, u, 1.0), v)
        unit = (radius - _RADIUS) / _WIDTH
        density = -0.5 * unit**2 - math.log(_WIDTH * math.sqrt(2 * math.pi) * math.pi) - radius.log()
        return torch.where(inside, density, -torch.inf)


def _centre(theta: Tensor) -> Tensor:
    """The centre of the crescent's circle for theta (*, 2), as (*, 2)."""
    first, second = theta.unbind(-1)
    return torch.stack([_OFFSET - (first + second).abs() / math.sqrt(2), (second - first) / math.sqrt(2)], -1)
