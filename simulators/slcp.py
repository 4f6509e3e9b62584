"""Simple likelihood, complex posterior: four draws from a Gaussian whose every moment is unknown."""

import math

import torch
from torch import Tensor

from sbi_core.parameters import Parameter
from sbi_core.simulator import Simulator


class SLCP(Simulator):
    """x are four draws from N(m, S): m = (theta_1, theta_2), S = [[s1^2, rho s1 s2], [rho s1 s2, s2^2]].

    s1 = theta_3^2, s2 = theta_4^2, rho = tanh(theta_5), theta uniform in [-3, 3]^5. x (8,) is draw by draw. The
    posterior has four modes or more, since the signs of theta_3 and theta_4 do not matter.

    The likelihood is exact, so log_joint is log p(x | theta) itself and z (0,) holds nothing, for nothing else is
    needed: joint score and score are the same, and gold leaves no noise.

    At theta_3 = 0 or theta_4 = 0 the draws lie on a line: log p is minus infinity there for x off it, with gradient
    zero. Near it the score grows like 1 / theta_3^2, so its mean is zero at every theta but its second moment over the
    prior infinite: give its square to a loss or to a check only with weights, or where both are away from zero. tanh
    loses no digits: 1 - rho^2 is 1 / cosh(theta_5)^2. The published code adds 1e-6 to the diagonal of S, the paper and
    this class do not. Source: Lueckmann et al., arXiv:2101.04653, T.3; Papamakarios et al., arXiv:1805.07226.

    Example:
        >>> theta, x = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.0]), torch.tensor([0.0, 1.0]).repeat(4)
        >>> round(float(SLCP().log_likelihood(theta, x)), 4)  # -4 log(2 pi s1 s2)
        -12.8967
    """

    parameters = tuple(Parameter(f"theta_{k}", -3.0, 3.0, latex=rf"\theta_{k}") for k in range(1, 6))
    x_shape = (8,)

    def sample(self, theta: Tensor, design: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw x (M, 8) and an empty z (M, 0) at theta (M, 5)."""
        unit = torch.randn((len(theta), 4, 2), generator=generator, dtype=torch.float64)
        turn = theta[:, 4, None]
        first = unit[..., 0] / turn.cosh() + turn.tanh() * unit[..., 1]
        x = theta[:, None, :2] + theta[:, None, 2:4] ** 2 * torch.stack([first, unit[..., 1]], -1)
        return x.flatten(1), theta.new_empty((len(theta), 0))

    def log_joint(self, theta: Tensor, x: Tensor, z: Tensor | None, design: Tensor | None) -> Tensor:
        """log p(x | theta), theta (M, 5), x (M, 8), as (M,); z is not looked at."""
        return self.log_likelihood(theta, x)

    def log_likelihood(self, theta: Tensor, x: Tensor, design: Tensor | None = None) -> Tensor:
        """Exact log p(x | theta), theta (*, 5), x (*, 8), broadcasting to (*)."""
        theta = theta.to(torch.float64)
        width, turn = theta[..., 2:4] ** 2, theta[..., 4]
        flat = (width == 0).any(-1)
        width = torch.where(flat[..., None], 1.0, width)
        draws = x.to(torch.float64).unflatten(-1, (4, 2))
        first, second = ((draws - theta[..., None, :2]) / width[..., None, :]).unbind(-1)
        across = (first - turn.tanh()[..., None] * second) * turn.cosh()[..., None]
        logs = width.log().sum(-1) - turn.cosh().log() + math.log(2 * math.pi)
        density = -0.5 * (across**2 + second**2).sum(-1) - 4 * logs
        return torch.where(flat, -torch.inf, density)
