"""A forward-backward asymmetry that changes sign with the beam energy: the toy of experimental design."""

import math
from typing import Any

import torch
from torch import Tensor

from sbi_core.parameters import Parameter
from sbi_core.simulations import Simulations
from sbi_core.simulator import Simulator


class AsymmetryToy(Simulator):
    """The cosine c of one particle's angle, with an asymmetry that grows with a coupling g and away from 45 GeV.

        p(c | g, phi) = 3/8 (1 + c^2 + a c) on [-1, 1],    a = (4/3) g tanh(10 (2 phi - 90) / 90).

    g is uniform in [0.5, 1.5]; the design phi is the energy of each beam, 40 to 50 GeV, and 50 if none is given. There
    |a| < 1.61, and p is positive, for that needs |a| < 2. x is (c,). At 45 GeV x says nothing about g, and phi and
    90 GeV - phi say the same. The likelihood is exact, so log_joint is log p(x | g, phi) itself, with every term of the
    design, and z (0,) holds nothing: joint score and score are the same.

    Expected information gains about g in nats, of n events:

    | phi | 50 | 50 | 50 | 47 |
    |---|---|---|---|---|
    | n | 1 | 20 | 100 | 20 |
    | gain | .0104134 | .1760 | .5566 | .0426 |

    and of as many as there are at a resonance, `Events(toy, n=toy.rate_events)`, where asymmetry costs events:

    | phi | 46 | 47 | 48 | 48.1 to 48.9 | 50 |
    |---|---|---|---|---|---|
    | gain | .291 | .470 | .519 | .522 | .497 |

    The idea of such a toy is that of Cranmer, Heinrich & Louppe, "active sciencing"; the numbers are this one's own.

    Example:
        >>> toy = AsymmetryToy()
        >>> g, c = torch.tensor([[0.5], [1.5]]), torch.tensor([0.8])
        >>> toy.log_likelihood(g, c, torch.tensor([48.0]))
        tensor([-0.3126, -0.0360], dtype=torch.float64)
        >>> toy.rate_events(torch.tensor([[45.0], [46.5], [50.0]]))
        tensor([1000.,  500.,   83.])
    """

    parameters = (Parameter("g", 0.5, 1.5, latex="g"),)
    designs = (Parameter("phi", 40.0, 50.0, unit="GeV", latex=r"\phi"),)
    x_shape = (1,)
    design_score = True

    @staticmethod
    def rate_events(design: Tensor) -> Tensor:
        """Events that a run at phi (*, 1) has near a resonance, (*): 1000 / (1 + ((2 phi - 90) / 3)^2), rounded."""
        return torch.round(1000 / (1 + ((2 * design[..., 0] - 90) / 3) ** 2))

    def sample(self, theta: Tensor, design: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw c (M, 1) and an empty z (M, 0) at g (M, 1): the one real root of the cubic 8 (CDF(c) - u) = 0.

        With c = t - a/2 it is t^3 + 3 k^2 t + q, k^2 = 1 - a^2/4, whose root is -2 k sinh(asinh(q / (2 k^3)) / 3).
        """
        unit = torch.rand(len(theta), generator=generator, dtype=torch.float64)
        a = self._slope(design) * theta[:, 0]
        k = (1 - a**2 / 4).sqrt()
        q = a**3 / 4 - 3 * a + 4 - 8 * unit
        c = -2 * k * torch.sinh(torch.asinh(q / (2 * k**3)) / 3) - a / 2
        return c.clamp(-1, 1)[:, None], theta.new_empty((len(theta), 0))

    def log_joint(self, theta: Tensor, x: Tensor, z: Tensor | None, design: Tensor | None) -> Tensor:
        """log p(c | g, phi), g (M, 1), c (M, 1), phi (M, 1), as (M,); z is not looked at."""
        return self.log_likelihood(theta, x, design)

    def log_likelihood(self, theta: Tensor, x: Tensor, design: Tensor | None = None) -> Tensor:
        """Exact log p(c | g, phi), g (*, 1), c (*, 1), phi (*, 1), as (*); minus infinity beyond c = 1 and -1."""
        c = x[..., 0].to(torch.float64)
        density = self._shape(theta, c, design).log().add_(math.log(3 / 8))
        return torch.where(c.abs() <= 1, density, -torch.inf)

    def score(self, theta: Tensor, x: Tensor, design: Tensor | None = None) -> Tensor:
        """Exact d/dg log p(c | g, phi) = (a / g) c / (1 + c^2 + a c), g (*, 1), c (*, 1), phi (*, 1), as (*, 1)."""
        c = x[..., 0].to(torch.float64)
        return (self._slope(design) * c / self._shape(theta, c, design))[..., None]

    def draw(self, axes: Any, simulations: Simulations) -> None:
        """Draw histograms of c for the third of the N rows with the lowest a and the highest, and p(c) at its mean."""
        a = self._slope(simulations.design) * simulations.theta[:, 0]
        order, c = a.argsort(), torch.linspace(-1, 1, 201, dtype=torch.float64)
        third = max(1, len(order) // 3)
        for part, colour in ((order[:third], "#0072B2"), (order[-third:], "#D55E00")):
            mean, label = float(a[part].mean()), rf"$\langle a\rangle$ = {a[part].mean():.2f}"
            axes.hist(simulations.x[part, 0].numpy(), bins=25, range=(-1, 1), density=True, color=colour, alpha=0.3)
            axes.plot(c.numpy(), (0.375 * (1 + c**2 + mean * c)).numpy(), color=colour, label=label)
        axes.set(xlim=(-1, 1), xlabel="$c$", ylabel="density")
        axes.legend(loc="upper center")

    def _slope(self, design: Tensor | None) -> Tensor:
        """a / g at phi (*, 1), (*)."""
        phi = torch.tensor(50.0) if design is None else design[..., 0]
        return 4 / 3 * torch.tanh((2 * phi.to(torch.float64) - 90) / 9)

    def _shape(self, theta: Tensor, c: Tensor, design: Tensor | None) -> Tensor:
        """1 + c^2 + a c, g (*, 1), c (*), as (*)."""
        a = self._slope(design) * theta[..., 0].to(torch.float64)
        return ((a + c) * c).add_(1)
