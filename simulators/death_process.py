"""The death process: individuals fall ill independently of each other, and are counted at times to be chosen."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, LogNormal

from sbi_core.errors import InputError, MissingGold
from sbi_core.parameters import Parameter
from sbi_core.simulations import Simulations
from sbi_core.simulator import Simulator


class DeathProcess(Simulator):
    """Of N individuals each falls ill after an exponential time of rate b; x (K,) are the numbers ill at t_1 <= .. t_K.

    With t_0 = n_0 = 0, waits w_k = t_k - t_{k-1} and new cases d_k = n_k - n_{k-1}, of one and the same epidemic,

        d_k ~ Binomial(N - n_{k-1}, 1 - exp(-b w_k)),
        log p(x | b, t) = log [N! / (d_1! .. d_K! (N - n_K)!)] + sum_k [d_k log(1 - exp(-b w_k)) - b w_k (N - n_k)].

    Prior: log b ~ N(0, 1); its five standard deviations are the parameter's range. The design are the K times, in units
    of 1 / b, 0 to 10; by default those by which a share k / (K + 1) is ill on average at b = 1.

    z (1,) is the sum of the N times of falling ill. It is sufficient for b, and x is a function of these times and the
    design, so log p(x, z | b) = N log b - b z up to terms free of b. Such latents know more than x, the Fisher
    information N / b^2 for any design, where counts have N sum_k exp(-b t_{k-1}) w_k^2 / (exp(b w_k) - 1). The terms
    left out depend on the design.

    Expected information gains of the best designs in nats, for N = 10:

    | K | times | gain |
    |---|---|---|
    | 1 | 1.0793 | .807131 |
    | 2 | .5439, 2.6781 | .983271 |

    Source: Cook, Gibson & Gilligan, Biometrics 64 (2008) 860; as a test of design without a likelihood, Kleinegesse &
    Gutmann, arXiv:2002.08129.

    Args:
        n_times: times K at which is counted.
        population: individuals N.

    Example:
        >>> epidemic, b = DeathProcess(), torch.tensor([1.0])
        >>> round(float(epidemic.log_likelihood(b, torch.tensor([4.0, 9.0]), torch.tensor([0.5439, 2.6781]))), 4)
        -2.363
        >>> epidemic.fisher_information(b, torch.tensor([0.5439, 2.6781])).squeeze()
        tensor(7.6421, dtype=torch.float64)
    """

    parameters = (Parameter("rate", math.exp(-5), math.exp(5), latex="b"),)

    def __init__(self, n_times: int = 2, *, population: int = 10) -> None:
        if n_times < 1 or population < 1:
            raise InputError(f"n_times = {n_times}, population = {population}: expected at least 1 of each.")
        self.n_times = n_times
        self.population = population
        self.x_shape = (n_times,)
        self.designs = tuple(Parameter(f"t_{k}", 0.0, 10.0, latex=f"t_{{{k}}}") for k in range(1, n_times + 1))

    @property
    def prior(self) -> Distribution:
        """log b ~ N(0, 1), event shape (1,)."""
        zero = torch.zeros(1, dtype=torch.float64)
        return Independent(LogNormal(zero, zero + 1), 1)

    def sample(self, theta: Tensor, design: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw counts x (M, K) and the sum of all times z (M, 1) at b (M, 1)."""
        wait = torch.empty((len(theta), self.population), dtype=torch.float64).exponential_(generator=generator)
        ill = (wait / theta)[:, None] <= self._times(design)[..., None]
        return ill.sum(-1).to(torch.float64), (wait / theta).sum(1, keepdim=True)

    def log_joint(self, theta: Tensor, x: Tensor, z: Tensor | None, design: Tensor | None) -> Tensor:
        """N log b - b z, b (M, 1), z (M, 1), as (M,)."""
        if z is None:
            raise MissingGold(f"simulator '{self.name}': the simulations were stored without z.")
        return (self.population * theta.log() - theta * z)[:, 0]

    def log_likelihood(self, theta: Tensor, x: Tensor, design: Tensor | None = None) -> Tensor:
        """Exact log p(x | b, t), b (*, 1), x (*, K), t (*, K), as (*); minus infinity for counts that cannot be."""
        ill = x.to(torch.float64)
        new, hazard = _steps(ill), theta.to(torch.float64) * _steps(self._times(design))
        waited = hazard > 0
        chance = torch.where(waited, -torch.expm1(-hazard), 1.0).log()
        falls_ill = torch.where(waited | (new == 0), new * chance, -torch.inf)
        last = self.population - ill[..., -1]
        ways = math.lgamma(self.population + 1) - torch.lgamma(new + 1).sum(-1) - torch.lgamma(last + 1)
        return (falls_ill - hazard * (self.population - ill)).sum(-1) + ways

    def score(self, theta: Tensor, x: Tensor, design: Tensor | None = None) -> Tensor:
        """Exact d/db log p(x | b, t), b (*, 1), x (*, K), t (*, K), as (*, 1).

        It is sum_k w_k [d_k / (exp(b w_k) - 1) - (N - n_k)].
        """
        ill, wait = x.to(torch.float64), _steps(self._times(design))
        hazard = theta.to(torch.float64) * wait
        odds = torch.where(hazard > 0, 1 / torch.expm1(hazard), 0.0)
        return (wait * (_steps(ill) * odds - (self.population - ill))).sum(-1, keepdim=True)

    def fisher_information(self, theta: Tensor, design: Tensor | None = None, *, latent: bool = False) -> Tensor:
        """Fisher information of the counts at b (*, 1), t (*, K), or with `latent` of the times, as (*, 1, 1)."""
        theta = theta.to(torch.float64)
        if latent:
            return (self.population / theta**2)[..., None]
        times = self._times(design)
        wait = _steps(times)
        each = torch.where(wait > 0, wait**2 / torch.expm1(theta * wait), 0.0)
        return self.population * ((wait - times) * theta).exp().mul(each).sum(-1)[..., None, None]

    def draw(self, axes: Any, simulations: Simulations) -> None:
        """Draw 60 epidemics as counted, x (N, K), coloured by b, and the mean course at the quartiles of b."""
        from matplotlib import cm, colors

        some, times = simulations[:60], self._times(simulations.design)
        rate = simulations.theta[:, 0].log10()
        ends = float(rate.quantile(0.02)) - 0.01, float(rate.quantile(0.98)) + 0.01
        colour = cm.ScalarMappable(colors.Normalize(*ends), "viridis")
        apart = (torch.arange(len(some)) * 0.618 % 1 - 0.5)[:, None]  # so that epidemics do not hide each other
        at = times.expand(len(simulations), -1)[: len(some)] * (1 + 0.06 * apart)
        for t, n, shade in zip(at, some.x + 0.3 * apart, colour.to_rgba(rate.numpy()), strict=False):
            axes.plot(t.numpy(), n.numpy(), "o-", ms=3.5, lw=0.5, alpha=0.6, color=shade)
        t = torch.linspace(0, 1.15 * float(times.max()), 200)
        quartiles = rate.quantile(torch.tensor([0.25, 0.5, 0.75]).to(rate))
        for b, shade in zip(10**quartiles, colour.to_rgba(quartiles.numpy()), strict=True):
            axes.plot(t.numpy(), (self.population * -torch.expm1(-b * t)).numpy(), lw=2, color=shade)
        axes.set(xlim=(0, float(t[-1])), xlabel="time", ylabel=f"ill, of {self.population}")
        axes.figure.colorbar(colour, ax=axes, label=r"$\log_{10} b$", pad=0.02, shrink=0.8)

    def _times(self, design: Tensor | None) -> Tensor:
        """The times of counting (*, K)."""
        if design is None:
            return -torch.log1p(-torch.arange(1, self.n_times + 1, dtype=torch.float64) / (self.n_times + 1))
        times = design.to(torch.float64)
        wrong = ~(_steps(times) >= 0).all(-1)
        if bool(wrong.any()):
            first = times[wrong][0].tolist()
            raise InputError(
                f"design has times {first}: expected {self.n_times} from 0 up, none before the last. Sort them."
            )
        return times


def _steps(values: Tensor) -> Tensor:
    """Each of values (*, K) less the one before, and the first itself."""
    return torch.cat([values[..., :1], values.diff(dim=-1)], -1)
