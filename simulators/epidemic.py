"""An epidemic in a closed population, as it is counted: the stochastic SIR process."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_core.errors import InputError, MissingGold
from sbi_core.parameters import Parameter
from sbi_core.simulations import Simulations
from sbi_core.simulator import Simulator
from sbi_core.simulators.epidemic_filter import Filter, forward
from sbi_core.simulators.epidemic_paths import Paths, follow

OBSERVED = ("incidence", "prevalence")
"""What can be counted."""

MOST_STATES = 200_000
"""States of the exact filter up to which the likelihood is computed at all."""

NUMBERS = 100_000
"""Numbers that the filter holds in one array at once."""

QUICK = 300_000
"""Steps times states of one row up to which the likelihood counts as known, so that runs compare with it."""

_WEEK = 7.0


class Epidemic(Simulator):
    """Of N individuals the infected infect others and recover; x (K,) are counts at, or between, t_1 <= .. t_K.

    S are susceptible, I infected. One is infected at rate beta S I / N, and recovers after 1 / gamma on average. In
    the default of one stage that time is exponential, so recoveries come at rate gamma I: the SIR process of Bartlett
    and Kermack & McKendrick. With L stages, each left at rate L gamma, it is Erlang distributed, with the L-th part of
    the variance. The basic reproduction number is R0 = beta / gamma. Paths are exact (see `follow`).

    x is of one epidemic, at the K times of the design, in days, and given the path independent from time to time:

        incidence:   x_k ~ Binomial(infections in (t_{k-1}, t_k], reporting), t_0 = 0,
        prevalence:  x_k ~ Binomial(I(t_k), reporting),

    or, with dispersion phi > 0, beta-binomial: the reported share of n varies with variance phi reporting
    (1 - reporting), and the variance of x_k is 1 + (n - 1) phi times the binomial one.

    z (4,) are the infections n_i, the completed stages n_c (with one stage, the recoveries), A = integral of S I / N
    and B = integral of I, up to the last of the row's own times, and whatever came after the last event before that
    belongs to them. Counting knows nothing of theta but through the path, so up to terms free of theta

        log p(x, z | theta) = n_i log beta + n_c log gamma - beta A - L gamma B.

    Prior: uniform on the ranges. By default counts are weekly, up to the horizon.

    Sources: Gillespie, J. Phys. Chem. 81 (1977) 2340; Andersson & Britton, Stochastic Epidemic Models (2000); stages:
    Wearing, Rohani & Keeling, PLoS Medicine 2 (2005) e174.

    Args:
        population: individuals N.
        infected: of whom so many at time 0, in the first stage; all others are susceptible.
        observed: "incidence" or "prevalence".
        times: of counting, in days, where there is no design.
        horizon: latest time in days that a design may ask for; by default the last of `times`, or 70.
        reporting: probability that one is counted.
        dispersion: correlation phi of being counted at the same time, 0 to below 1.
        stages: L.
        beta: range of beta per day.
        gamma: range of gamma per day.

    Raises:
        InputError: for settings, times or thetas that make no epidemic; and for likelihoods that cost too much.

    Example:
        >>> school = Epidemic(population=30, infected=1, observed="prevalence", times=[2.0, 4.0], reporting=0.8)
        >>> theta = torch.tensor([1.0, 0.4])
        >>> round(float(school.log_likelihood(theta, torch.tensor([2.0, 4.0]))), 4)
        -4.1246
    """

    rows_per_seed = 2000

    def __init__(
        self,
        *,
        population: int = 1000,
        infected: int = 10,
        observed: str = "incidence",
        times: Sequence[float] | None = None,
        horizon: float | None = None,
        reporting: float = 0.5,
        dispersion: float = 0.0,
        stages: int = 1,
        beta: Sequence[float] = (0.1, 1.0),
        gamma: Sequence[float] = (0.05, 0.5),
    ) -> None:
        whole = all(isinstance(number, int) for number in (population, infected, stages))
        if not (whole and 1 <= infected <= population and stages >= 1):
            raise InputError(
                f"population = {population}, infected = {infected}, stages = {stages}: expected whole numbers, 1 to "
                "population of infected, and at least 1 stage."
            )
        if observed not in OBSERVED:
            raise InputError(f"observed = {observed!r}: expected one of {', '.join(OBSERVED)}.")
        if not (0 < reporting <= 1 and 0 <= dispersion < 1):
            raise InputError(
                f"reporting = {reporting}, dispersion = {dispersion}: expected a probability above 0, and a number "
                "from 0 to below 1."
            )
        ranges = {"beta": tuple(beta), "gamma": tuple(gamma)}
        for name, ends in ranges.items():
            if len(ends) != 2 or not 0 < ends[0] < ends[1] < math.inf:
                raise InputError(f"{name} = {list(ends)}: expected a range of positive rates per day, [low, high].")
        self.horizon = float(horizon if horizon is not None else 10 * _WEEK if times is None else max(times, default=0))
        if times is None:
            times = [_WEEK * week for week in range(1, int(self.horizon / _WEEK + 1e-9) + 1)]
        self.times = tuple(map(float, times))
        if not self.times or not all(0 <= a <= b <= self.horizon for a, b in zip((0.0, *self.times), self.times)):
            raise InputError(
                f"times = {list(self.times)}, horizon = {self.horizon:g}: expected at least one time, ascending from 0 "
                "to the horizon."
            )
        self.population = population
        self.infected = infected
        self.observed = observed
        self.reporting = float(reporting)
        self.dispersion = float(dispersion)
        self.stages = stages
        self.x_shape = (len(self.times),)
        self.parameters = (
            Parameter("beta", *map(float, ranges["beta"]), unit="1/day", latex=r"\beta"),
            Parameter("gamma", *map(float, ranges["gamma"]), unit="1/day", latex=r"\gamma"),
        )
        self.designs = tuple(
            Parameter(f"t_{k}", 0.0, self.horizon, unit="day", latex=f"t_{{{k}}}") for k in range(1, len(times) + 1)
        )

    @property
    def is_exact(self) -> bool:
        """Whether the exact filter is so quick (`QUICK`) that runs compare with it; `log_likelihood` may cost more."""
        return self._filter.states <= MOST_STATES and self._updates(self.horizon) <= QUICK

    def basic_reproduction_number(self, theta: Tensor) -> Tensor:
        """R0 = beta / gamma, theta (*, 2), as (*)."""
        return theta[..., 0] / theta[..., 1]

    def sample(self, theta: Tensor, design: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw counts x (M, K) and latents z (M, 4) at theta (M, 2)."""
        if not bool((theta > 0).all()):
            first = theta[~(theta > 0).all(1)][0].tolist()
            raise InputError(f"theta = {first}: expected positive rates beta and gamma per day.")
        times = self._times(design).expand(len(theta), -1).contiguous()
        healthy = float(self.population - self.infected)
        stage = torch.arange(self.stages).expand(len(theta), -1)
        begin = torch.where(stage == 0, float(self.infected), 0.0).to(torch.float64)
        paths = follow(*theta.unbind(1), torch.full_like(theta[:, 0], healthy), begin, times, self.population, generator)
        words = torch.randint(0, 2**32, (8,), generator=generator)
        x = self._count(paths, healthy, np.random.default_rng(words.tolist()))
        return x, self._latents(paths, healthy)

    def log_joint(self, theta: Tensor, x: Tensor, z: Tensor | None, design: Tensor | None) -> Tensor:
        """n_i log beta + n_c log gamma - beta A - L gamma B, theta (M, 2), z (M, 4), as (M,)."""
        if z is None:
            raise MissingGold(f"simulator '{self.name}': the simulations were stored without z.")
        exposure = z[:, 2:] * torch.tensor([1.0, self.stages], dtype=torch.float64)
        return (z[:, :2] * theta.log() - theta * exposure).sum(1)

    def log_likelihood(self, theta: Tensor, x: Tensor, design: Tensor | None = None) -> Tensor:
        """Exact log p(x | theta, design), theta (*, 2), x (*, K), design (*, K), as (*), by the filter of all states.

        Minus infinity for counts that cannot be. Refused beyond 200,000 states.
        """
        return self._by_rows(lambda *rows: self._forward(*rows)[0], theta, x, design)

    def score(self, theta: Tensor, x: Tensor, design: Tensor | None = None) -> Tensor:
        """Exact grad_theta log p(x | theta, design), theta (*, 2), x (*, K), design (*, K), as (*, 2)."""
        return self._by_rows(lambda *rows: self._forward(*rows, slopes=True)[1], theta, x, design)

    def draw(self, axes: Any, simulations: Simulations) -> None:
        """Draw 60 series of counts x (N, K), coloured by R0."""
        from matplotlib import cm, colors

        some = simulations[:60]
        number = self.basic_reproduction_number(simulations.theta)
        ends = float(number.quantile(0.02)), float(number.quantile(0.98)) + 1e-9
        colour = cm.ScalarMappable(colors.LogNorm(*ends), "viridis")
        times = self._times(simulations.design).expand(len(simulations), -1)
        for t, n, shade in zip(times, some.x, colour.to_rgba(number.numpy()), strict=False):
            axes.plot(t.numpy(), n.numpy(), "o-", ms=2.5, lw=0.8, alpha=0.7, color=shade)
        axes.set(xlabel="day", ylabel="infected, as counted" if self.observed == "prevalence" else "new cases, as counted")
        axes.set_ylim(bottom=0)
        axes.figure.colorbar(colour, ax=axes, label=r"$R_0 = \beta / \gamma$", pad=0.02, shrink=0.8)

    @property
    def _filter(self) -> Filter:
        return Filter(self.population, self.infected, self.stages, self.observed == "incidence")

    def _updates(self, days: float) -> float:
        """Steps times states of one row, at the fastest rates of the ranges."""
        fastest = self._filter.fastest(*torch.tensor([[axis.high] for axis in self.parameters], dtype=torch.float64))
        return self._filter.states * days * float(fastest)

    def _by_rows(self, function: Any, theta: Tensor, x: Tensor, design: Tensor | None) -> Tensor:
        """A function of theta (B, 2), x (B, K), times (B, K), for all rows in parts that fit into memory."""
        states = self._filter.states
        if states > MOST_STATES:
            seconds = self._updates(self.horizon) * 1e-8
            raise InputError(
                f"population = {self.population}, stages = {self.stages}: the exact likelihood of {self.observed} follows "
                f"{states:,} states, expected at most {MOST_STATES:,}; one row would take about {seconds:.2g} s. Learn it: "
                "fit, then infer with the estimator."
            )
        times = self._times(design)
        shape = torch.broadcast_shapes(theta.shape[:-1], x.shape[:-1], times.shape[:-1])
        rows = [part.to(torch.float64).expand(*shape, -1).reshape(-1, part.shape[-1]) for part in (theta, x, times)]
        few = max(1, NUMBERS // states)
        found = torch.cat([function(*part) for part in zip(*(row.split(few) for row in rows), strict=True)])
        return found.reshape((*shape, *found.shape[1:]))

    def _forward(self, theta: Tensor, x: Tensor, times: Tensor, *, slopes: bool = False) -> tuple[Tensor, Tensor]:
        return forward(self._filter, theta, x, times, self._log_count, slopes=slopes)

    def _log_count(self, x: Tensor, true: Tensor) -> Tensor:
        """log probability that x of `true` are counted, broadcasting."""
        can = (x >= 0) & (x <= true) & (x == x.round())
        x, missed = torch.where(can, x, 0.0), torch.where(can, true - x, 0.0)
        ways = -_log_beta(x + 1, missed + 1) - (x + missed + 1).log()
        if self.dispersion and self.reporting < 1:
            a, b = torch.tensor(self._shape, dtype=torch.float64)
            chance = _log_beta(x + a, missed + b) - _log_beta(a, b)
        else:
            share = torch.tensor(self.reporting, dtype=torch.float64)
            chance = torch.xlogy(x, share) + torch.xlogy(missed, 1 - share)
        return torch.where(can, ways + chance, -torch.inf)

    @property
    def _shape(self) -> tuple[float, float]:
        """Of the beta distribution of the reported share."""
        both = 1 / self.dispersion - 1
        return self.reporting * both, (1 - self.reporting) * both

    def _count(self, paths: Paths, healthy: float, rng: np.random.Generator) -> Tensor:
        """Counts (M, K) of paths."""
        if self.observed == "prevalence":
            true = paths.infected.sum(-1)
        else:
            true = -paths.susceptible.diff(dim=1, prepend=torch.full_like(paths.susceptible[:, :1], healthy))
        if self.reporting == 1:
            return true
        share = rng.beta(*self._shape, size=tuple(true.shape)) if self.dispersion else self.reporting
        return torch.from_numpy(rng.binomial(true.numpy().astype(np.int64), share)).to(torch.float64)

    def _latents(self, paths: Paths, healthy: float) -> Tensor:
        """z (M, 4) of paths."""
        last, by_stage = paths.susceptible[:, -1], paths.infected[:, -1]
        gone = self.population - last - by_stage.sum(1)
        completed = self.stages * gone + by_stage @ torch.arange(self.stages, dtype=torch.float64)
        return torch.stack([healthy - last, completed, paths.contacts, paths.burden], 1)

    def _times(self, design: Tensor | None) -> Tensor:
        """The times of counting (*, K)."""
        times = torch.tensor(self.times, dtype=torch.float64) if design is None else design.to(torch.float64)
        steps = torch.cat([times[..., :1], times.diff(dim=-1)], -1)
        wrong = ~(steps >= 0).all(-1)
        if times.shape[-1:] != self.x_shape or bool(wrong.any()):
            first = times[wrong][0].tolist() if bool(wrong.any()) else times.flatten()[:12].tolist()
            raise InputError(
                f"design has times {first}: expected {len(self.times)} from 0 up, none before the last. Sort them."
            )
        return times


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
