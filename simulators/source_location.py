"""Hidden sources in the plane, to be found by measuring how strong their joint signal is at places to be chosen."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from sbi_core.errors import InputError
from sbi_core.parameters import Parameter
from sbi_core.simulations import Simulations
from sbi_core.simulator import Simulator


class SourceLocation(Simulator):
    """S sources at theta_k in the plane; x (1,) is the logarithm of their signal at the design xi, with noise.

        x ~ N(log mu, noise_std^2),    mu(theta, xi) = background + sum_k strength / (softening + |xi - theta_k|^2).

    Prior: theta_k ~ N(0, I), all lengths in units of its standard deviation; theta (2 S,) is x and y of each source in
    turn, and the sources may change places. xi lies in [-reach, reach]^2, and is the origin by default. The likelihood
    is exact, so log_joint is log p(x | theta, xi) itself, with every term of the design, and z (0,) holds nothing:
    joint score and score are the same, and gold leaves no noise.

    Near a source the score grows like the inverse distance, up to softening^(-1/2) / noise_std = 200. It is bounded,
    but means over the whole prior of its square, or of ratios, rest on the few rows nearest to a source.

    Expected information gain of a single measurement with the defaults, in nats, by quadrature:

    | distance of xi from the origin | 0 | 1 | 2 | 3 | 4 |
    |---|---|---|---|---|---|
    | gain | .8267 | .7856 | .5620 | .2795 | .1127 |

    Source: Foster, Ivanova, Malik & Rainforth, arXiv:2103.02438 ("location finding"), whose values are the defaults.

    Args:
        n_sources: sources S.
        strength: signal of each source at distance 1, less the softening.
        background: signal far from all sources.
        softening: square of the distance within which a signal grows no more.
        noise_std: standard deviation of x.
        reach: largest coordinate of a measurement.

    Example:
        >>> field = SourceLocation()
        >>> theta, here = torch.tensor([0.0, 0.0, 3.0, 4.0]), torch.tensor([[0.0, 1.0], [-4.0, -4.0]])
        >>> field.log_likelihood(theta, torch.tensor([0.0]), here)
        tensor([-0.2675, -7.9514], dtype=torch.float64)
    """

    x_shape = (1,)
    design_score = True

    def __init__(
        self,
        n_sources: int = 2,
        *,
        strength: float = 1.0,
        background: float = 0.1,
        softening: float = 1e-4,
        noise_std: float = 0.5,
        reach: float = 4.0,
    ) -> None:
        positive = {"strength": strength, "softening": softening, "noise_std": noise_std, "reach": reach}
        if n_sources < 1 or background < 0 or min(positive.values()) <= 0:
            raise InputError(
                f"n_sources = {n_sources}, expected at least 1; background = {background}, expected at least 0; "
                f"{', '.join(f'{name} = {value}' for name, value in positive.items())}, expected positive numbers."
            )
        self.n_sources = n_sources
        self.strength = strength
        self.background = background
        self.softening = softening
        self.noise_std = noise_std
        self.reach = reach
        self.parameters = tuple(
            Parameter(f"theta_{k}{axis}", -10.0, 10.0, latex=rf"\theta_{{{k}{axis}}}")
            for k in range(1, n_sources + 1)
            for axis in "xy"
        )
        self.designs = tuple(Parameter(f"xi_{axis}", -reach, reach, latex=rf"\xi_{axis}") for axis in "xy")

    @property
    def prior(self) -> Distribution:
        """N(0, I), event shape (2 S,)."""
        zeros = torch.zeros(2 * self.n_sources, dtype=torch.float64)
        return Independent(Normal(zeros, zeros + 1), 1)

    def log_signal(self, theta: Tensor, design: Tensor | None = None) -> Tensor:
        """Mean of x: log mu (*) for theta (*, 2 S), xi (*, 2), in five passes over (*) for each source."""
        place = theta.to(torch.float64).unbind(-1)
        across, up = _at(design)
        one = torch.ones((), dtype=torch.float64, device=theta.device)
        signal = self.background * one
        for k in range(self.n_sources):
            right, above = place[2 * k] - across, place[2 * k + 1] - up
            square = torch.addcmul(self.softening * one, right, right).addcmul_(above, above)
            signal = torch.addcdiv(signal, one, square, value=self.strength)
        return signal.log()

    def sample(self, theta: Tensor, design: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw x (M, 1) and an empty z (M, 0) at theta (M, 2 S)."""
        noise = torch.randn(len(theta), generator=generator, dtype=torch.float64)
        x = self.log_signal(theta, design) + self.noise_std * noise
        return x[:, None], theta.new_empty((len(theta), 0))

    def log_joint(self, theta: Tensor, x: Tensor, z: Tensor | None, design: Tensor | None) -> Tensor:
        """log p(x | theta, xi), theta (M, 2 S), x (M, 1), xi (M, 2), as (M,); z is not looked at."""
        return self.log_likelihood(theta, x, design)

    def log_likelihood(self, theta: Tensor, x: Tensor, design: Tensor | None = None) -> Tensor:
        """Exact log p(x | theta, xi), theta (*, 2 S), x (*, 1), xi (*, 2), broadcasting to (*)."""
        residual = x[..., 0].to(torch.float64) - self.log_signal(theta, design)
        level = residual.new_full((), -math.log(self.noise_std * math.sqrt(2 * math.pi)))
        return torch.addcmul(level, residual, residual, value=-0.5 / self.noise_std**2)

    def score(self, theta: Tensor, x: Tensor, design: Tensor | None = None) -> Tensor:
        """Exact grad_theta log p(x | theta, xi), theta (*, 2 S), x (*, 1), xi (*, 2), as (*, 2 S)."""
        residual = x.to(torch.float64) - self.log_signal(theta, design)[..., None]
        return residual * self._slope(theta, design) / self.noise_std**2

    def fisher_information(self, theta: Tensor, design: Tensor | None = None) -> Tensor:
        """Exact Fisher information, of rank 1, of one measurement at theta (*, 2 S), xi (*, 2), as (*, 2 S, 2 S)."""
        slope = self._slope(theta, design)
        return slope[..., :, None] * slope[..., None, :] / self.noise_std**2

    def draw(self, axes: Any, simulations: Simulations) -> None:
        """Draw the first row's sources, theta (N, 2 S), their signal, and what rows with the same theta measured."""
        same = simulations[(simulations.theta == simulations.theta[0]).all(1)]
        line = torch.linspace(-self.reach, self.reach, 161, dtype=torch.float64)
        field = self.log_signal(same.theta[0], torch.stack(torch.meshgrid(line, line, indexing="xy"), -1))
        ends = math.log(self.background + 1e-3), float(field.quantile(0.995))
        colour = {"cmap": "viridis", "vmin": ends[0], "vmax": ends[1]}
        axes.pcolormesh(line.numpy(), line.numpy(), field.numpy(), shading="nearest", rasterized=True, **colour)
        across, up = (torch.as_tensor(value).expand(len(same)).numpy() for value in _at(same.design))
        seen = axes.scatter(across, up, c=same.x[:, 0].numpy(), s=45, edgecolors="white", lw=1.2, **colour)
        axes.plot(*same.theta[0].reshape(-1, 2).T.numpy(), "*", ms=13, color="#D55E00", mec="white", label="sources")
        axes.figure.colorbar(seen, ax=axes, label=r"$\log\,\mu$; dots: $x$", pad=0.02, shrink=0.8)
        limits = -self.reach, self.reach
        axes.set(xlim=limits, ylim=limits, aspect="equal", xlabel=self.designs[0].label, ylabel=self.designs[1].label)
        axes.legend(loc="upper right")

    def _slope(self, theta: Tensor, design: Tensor | None) -> Tensor:
        """Gradient of log mu in theta (*, 2 S) at xi (*, 2), as (*, 2 S)."""
        away = theta.to(torch.float64).unflatten(-1, (-1, 2)) - torch.stack(_at(design), -1)[..., None, :]
        each = 1 / (self.softening + away.square().sum(-1, keepdim=True))
        signal = self.background + self.strength * each.sum((-1, -2))
        return (-2 * self.strength * away * each**2).flatten(-2) / signal[..., None]


def _at(design: Tensor | None) -> tuple[Tensor, ...]:
    """Coordinates of the measurement, (*) each, for xi (*, 2)."""
    return (torch.zeros(2) if design is None else design).to(torch.float64).unbind(-1)
