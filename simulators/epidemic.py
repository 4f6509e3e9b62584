"""An epidemic in a closed population, as it is counted: the stochastic SIR process."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_core.errors import InputError, MissingGold
from sbi_core.parameters import Parameter
from sbi_core.simulations import Simulations
from sbi_core.simulator import Simulator
from sbi_core.simulators.epidemic_counts import Reporting
from sbi_core.simulators.epidemic_filter import Filter, forward
from sbi_core.simulators.epidemic_paths import follow

OBSERVED = ("incidence", "prevalence")
"""What can be counted."""

WEEK = 7.0

MOST_STATES = 200_000
"""States of the exact filter up to which the likelihood is computed at all."""

MOST_PRODUCTS = 3e10
"""Products of states and steps in one row up to which it is computed: some minutes."""

QUICK = 300_000
"""Products of states and steps in one row up to which runs compare with the exact likelihood: some milliseconds."""

NUMBERS = 100_000
"""Numbers that the filter holds in one array, at most, where there is more than one row."""

OUTCOMES = 20_000
"""x over which is summed for the Fisher information, at most."""


class Epidemic(Simulator):
    """Of N individuals the infected infect others and recover; x (K,) are counts at, or between, t_1 <= .. t_K.

    S are susceptible, I infected. New infections come at rate beta S I / N, and one is infected for 1 / gamma on
    average. With one stage that time is exponential and recoveries come at rate gamma I, the general stochastic
    epidemic; with L stages, each left at rate L gamma, it is Erlang distributed and has an L-th of that variance. The
    basic reproduction number is R0 = beta / gamma. Paths are exact (see `follow`).

    All x_k are counts of one epidemic, at the K times of the design in days, independent given its path:

        incidence:   x_k ~ Binomial(number of infections in (t_{k-1}, t_k], reporting), t_0 = 0,
        prevalence:  x_k ~ Binomial(I(t_k), reporting),

    or beta-binomial: with a dispersion phi > 0 the share of n that is counted has the variance phi reporting
    (1 - reporting) from one count to the next, and x_k that of the binomial times 1 + (n - 1) phi.

    z (4,) are n_i infections, n_c completed stages (recoveries, if there is one stage), A = integral of S I / N and
    B = integral of I, all until the last time of the row's own design, so what comes between the last event before it
    and that time is part of them. Counts know theta through the path alone. Up to terms free of theta

        log p(x, z | theta) = n_i log beta + n_c log gamma - beta A - L gamma B.

    Prior: uniform on the ranges.

    Sources: Andersson & Britton, Stochastic Epidemic Models and Their Statistical Analysis (2000); stages: Wearing,
    Rohani & Keeling, PLoS Medicine 2 (2005) e174.

    Args:
        population: individuals N.
        infected: so many at time 0, in the first stage; all others are susceptible.
        observed: "incidence" or "prevalence".
        times: of counting, in days, where there is no design; by default every week up to the horizon.
        horizon: latest time of a design, in days; by default the last of `times`, or ten weeks.
        reporting: probability of being counted.
        dispersion: correlation phi of two individuals being counted at the same time, 0 to below 1.
        stages: number of stages L.
        beta: range of beta per day.
        gamma: range of gamma per day.

    Raises:
        InputError: for settings, times and thetas that make no epidemic, and for exact answers that cost too much.

    Example:
        >>> school = Epidemic(population=30, infected=1, observed="prevalence", times=[2, 4], reporting=0.8)
        >>> round(float(school.log_likelihood(torch.tensor([1.0, 0.4]), torch.tensor([2.0, 4.0]))), 4)
        -4.117
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
        _check(population, infected, stages, observed, reporting, dispersion)
        self.population = population
        self.infected = infected
        self.observed = observed
        self.times, self.horizon = _calendar(times, horizon)
        self.reporting = float(reporting)
        self.dispersion = float(dispersion)
        self.stages = stages
        self.x_shape = (len(self.times),)
        self.parameters = _rate("beta", beta), _rate("gamma", gamma)
        self.designs = tuple(
            Parameter(f"t_{k}", 0.0, self.horizon, unit="day", latex=f"t_{{{k}}}")
            for k in range(1, len(self.times) + 1)
        )
        self._reporting = Reporting(self.reporting, self.dispersion)
        self._filter = Filter(population, infected, stages, observed == "incidence")

    @property
    def is_exact(self) -> bool:
        """Whether the exact likelihood is so quick that runs compare with it; it can be asked for well beyond."""
        return self._filter.states <= MOST_STATES and self._products() <= QUICK

    def basic_reproduction_number(self, theta: Tensor) -> Tensor:
        """R0 = beta / gamma, theta (*, 2), as (*)."""
        return theta[..., 0] / theta[..., 1]

    def sample(self, theta: Tensor, design: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw counts x (M, K) and latents z (M, 4) at theta (M, 2)."""
        wrong = ~((theta > 0) & theta.isfinite()).all(1)
        if bool(wrong.any()):
            raise InputError(f"theta = {theta[wrong][0].tolist()}: expected positive rates beta and gamma per day.")
        times = self._times(design).expand(len(theta), -1).contiguous()
        healthy = torch.full_like(theta[:, 0], self.population - self.infected)
        ill = torch.zeros((len(theta), self.stages), dtype=torch.float64)
        ill[:, 0] = self.infected
        paths = follow(theta[:, 0], theta[:, 1], healthy, ill, times, self.population, generator)
        words = torch.randint(0, 2**32, (8,), generator=generator)
        if self.observed == "prevalence":
            true = paths.infected.sum(-1)
        else:
            true = -paths.susceptible.diff(dim=1, prepend=healthy[:, None])
        x = self._reporting.draw(true, np.random.default_rng(words.tolist()))
        infections = healthy - paths.susceptible[:, -1]
        completed = self._completed(paths.susceptible[:, -1], paths.infected[:, -1])
        return x, torch.stack([infections, completed, paths.contacts, paths.burden], 1)

    def log_joint(self, theta: Tensor, x: Tensor, z: Tensor | None, design: Tensor | None) -> Tensor:
        """n_i log beta + n_c log gamma - beta A - L gamma B, theta (M, 2), z (M, 4), as (M,)."""
        if z is None:
            raise MissingGold(f"simulator '{self.name}': the simulations were stored without z.")
        stages = torch.tensor([1.0, self.stages], dtype=torch.float64)
        return (z[:, :2] * theta.log() - stages * theta * z[:, 2:]).sum(1)

    def log_likelihood(self, theta: Tensor, x: Tensor, design: Tensor | None = None) -> Tensor:
        """Exact log p(x | theta, design), theta (*, 2), x (*, K), design (*, K), as (*), by the filter of all states.

        Minus infinity for counts that cannot be. Refused beyond 200,000 states.
        """
        return self._by_rows(lambda *row: self._forward(*row)[0], theta, x, design)

    def score(self, theta: Tensor, x: Tensor, design: Tensor | None = None) -> Tensor:
        """Exact grad_theta log p(x | theta, design), theta (*, 2), x (*, K), design (*, K), as (*, 2)."""
        return self._by_rows(lambda *row: self._forward(*row, slopes=True)[1], theta, x, design)

    def fisher_information(self, theta: Tensor, design: Tensor | None = None, *, latent: bool = False) -> Tensor:
        """Fisher information of x at theta (*, 2), design (*, K), by a sum over all x; or with `latent` that of (x, z).

        The latter is diagonal, E[n_i] / beta^2 and E[n_c] / gamma^2. As (*, 2, 2).
        """
        if latent:
            known = self._by_rows(self._expected, theta, torch.zeros(len(self.times)), design)
            return (known / theta.to(torch.float64) ** 2).diag_embed()
        values = self.population + 1 - (self.infected if self.observed == "incidence" else 0)
        if values ** len(self.times) > OUTCOMES:
            raise InputError(
                f"population = {self.population}, counted {len(self.times)} times: {values ** len(self.times):.2g} "
                f"outcomes, expected at most {OUTCOMES:,}. Take the variance of `score` over simulations."
            )
        numbers = [torch.arange(values, dtype=torch.float64)] * len(self.times)
        x = torch.cartesian_prod(*numbers).reshape(-1, len(self.times))
        theta, design = theta[..., None, :], None if design is None else design[..., None, :]
        score, chance = self.score(theta, x, design), self.log_likelihood(theta, x, design).exp()
        return torch.einsum("...x,...xd,...xe->...de", chance, score, score)

    def draw(self, axes: Any, simulations: Simulations) -> None:
        """Draw 60 series of counts x (N, K), coloured by R0."""
        from matplotlib import cm, colors

        number = self.basic_reproduction_number(simulations.theta)
        ends = float(number.quantile(0.02)), float(number.quantile(0.98)) * 1.001
        colour = cm.ScalarMappable(colors.LogNorm(*ends), "viridis")
        times = self._times(simulations.design).expand(len(simulations), -1)[:60]
        for t, n, shade in zip(times, simulations[:60].x, colour.to_rgba(number.numpy()), strict=False):
            axes.plot(t.numpy(), n.numpy(), "o-", ms=2.5, lw=0.8, alpha=0.7, color=shade)
        axes.set(xlabel="day", ylabel="infected" if self.observed == "prevalence" else "new infections", ylim=(0, None))
        ticks = [value for value in (0.2, 0.5, 1, 2, 5, 10, 20, 50) if ends[0] <= value <= ends[1]]
        looks = {"label": r"$R_0 = \beta / \gamma$", "ticks": ticks, "format": "%g", "pad": 0.02, "shrink": 0.8}
        axes.figure.colorbar(colour, ax=axes, **looks).minorticks_off()

    def _completed(self, susceptible: Tensor, infected: Tensor) -> Tensor:
        """Stages completed by all, (*), when there are S (*), and in each stage (*, L)."""
        behind = torch.arange(self.stages, dtype=torch.float64)  # by those who are in a stage
        gone = self.population - susceptible - infected.sum(-1)
        return self.stages * gone + (infected * behind).sum(-1)

    def _products(self) -> float:
        """States times steps of one row of the filter, at the fastest rates of the ranges."""
        high = torch.tensor([[axis.high] for axis in self.parameters], dtype=torch.float64)
        return self._filter.states * self.horizon * float(self._filter.fastest(*high))

    def _by_rows(self, function: Callable[..., Tensor], theta: Tensor, x: Tensor, design: Tensor | None) -> Tensor:
        """A function of theta (B, 2), x (B, K), times (B, K) of all rows, in parts that fit into the cache."""
        states = self._filter.states
        if states > MOST_STATES:
            raise InputError(
                f"population = {self.population}, stages = {self.stages}: the exact likelihood of {self.observed} "
                f"follows {states:,} states, expected at most {MOST_STATES:,}; it would take about "
                f"{self._products() * 1e-8:.2g} s a row. Learn the likelihood, or ask for a smaller population."
            )
        times = self._times(design)
        if theta.shape[-1:] != (2,) or x.shape[-1:] != self.x_shape:
            raise InputError(
                f"theta has shape {tuple(theta.shape)} and x {tuple(x.shape)}, expected (*, 2), which are beta and "
                f"gamma per day, and (*, {len(self.times)}) counts."
            )
        beta, gamma = theta.detach().to(torch.float64).reshape(-1, 2).T
        steps = self._filter.fastest(beta, gamma) * times.max()
        wrong = ~((beta >= 0) & (gamma >= 0) & (states * steps < MOST_PRODUCTS))
        if bool(wrong.any()):
            raise InputError(
                f"theta = {theta.reshape(-1, 2)[wrong][0].tolist()}: expected rates beta and gamma per day from 0 up, "
                "and not so high that the exact likelihood takes minutes a row."
            )
        shape = torch.broadcast_shapes(theta.shape[:-1], x.shape[:-1], times.shape[:-1])
        rows = [part.to(torch.float64).expand(*shape, -1).reshape(-1, part.shape[-1]) for part in (theta, x, times)]
        few = max(1, NUMBERS // states)
        found = torch.cat([function(*part) for part in zip(*(row.split(few) for row in rows), strict=True)])
        return found.reshape((*shape, *found.shape[1:]))

    def _forward(self, theta: Tensor, x: Tensor, times: Tensor, *, slopes: bool = False) -> tuple[Tensor, Tensor]:
        return forward(self._filter, theta, x, times, self._reporting.log_prob, slopes=slopes)

    def _expected(self, theta: Tensor, x: Tensor, times: Tensor) -> Tensor:
        """Expected infections and completed stages until the last time, (B, 2)."""
        states = self._filter
        p = states.wait(states.start(len(theta)), theta[:, 0], theta[:, 1], times[:, -1])[0]
        susceptible = states.number(1)
        infected = torch.stack(torch.broadcast_tensors(*map(states.number, range(2, 2 + self.stages))), -1)
        numbers = self.population - self.infected - susceptible, self._completed(susceptible, infected)
        return torch.stack([(p * number).flatten(1).sum(1) for number in numbers], 1)

    def _times(self, design: Tensor | None) -> Tensor:
        """The times of counting (*, K)."""
        times = torch.tensor(self.times, dtype=torch.float64) if design is None else design.to(torch.float64)
        if times.shape[-1:] != self.x_shape:
            raise InputError(f"design has shape {tuple(times.shape)}, expected (*, {len(self.times)}) times in days.")
        wrong = ~(torch.cat([times[..., :1], times.diff(dim=-1)], -1) >= 0).all(-1)
        if bool(wrong.any()):
            raise InputError(
                f"design has times {times[wrong][0].tolist()}: expected {len(self.times)} from 0 up, none before the "
                "last. Sort them."
            )
        return times


def _check(population: int, infected: int, stages: int, observed: str, reporting: float, dispersion: float) -> None:
    whole = all(type(number) is int for number in (population, infected, stages))
    if not whole or not 1 <= infected <= population or stages < 1:
        raise InputError(
            f"population = {population}, infected = {infected}, stages = {stages}: expected whole numbers from 1 up, "
            "and no more infected than there are individuals."
        )
    if observed not in OBSERVED:
        raise InputError(f"observed = {observed!r}: expected one of {', '.join(OBSERVED)}.")
    if not (0 < reporting <= 1 and 0 <= dispersion < 1):
        raise InputError(
            f"reporting = {reporting}, dispersion = {dispersion}: expected a probability above 0, and a correlation "
            "from 0 to below 1."
        )


def _calendar(times: Sequence[float] | None, horizon: float | None) -> tuple[tuple[float, ...], float]:
    """The times of counting, and the latest that a design may ask for."""
    try:
        if times is None:
            end = 10 * WEEK if horizon is None else float(horizon)
            found = [WEEK * week for week in range(1, int(end / WEEK + 1e-9) + 1)]
        else:
            found = list(map(float, times))
            end = max(found, default=0.0) if horizon is None else float(horizon)
    except (TypeError, ValueError, OverflowError):
        raise InputError(
            f"times = {times!r}, horizon = {horizon!r}: expected a list of times, and a horizon, in days."
        ) from None
    ascending = all(before <= after for before, after in zip([0.0, *found], [*found, end], strict=True))
    if not found or not ascending or not 0 < end < math.inf:
        raise InputError(
            f"times = {found}, horizon = {end:g}: expected at least one time, ascending from 0 to a horizon in days."
        )
    return tuple(found), end


def _rate(name: str, ends: Sequence[float]) -> Parameter:
    try:
        low, high = (math.nan if isinstance(end, str) else float(end) for end in ends)
    except (TypeError, ValueError):
        low = high = math.nan
    if not 0 < low < high < math.inf:
        raise InputError(f"{name} = {ends!r}: expected a range of positive rates per day, [low, high].")
    return Parameter(name, low, high, unit="1/day", latex=rf"\{name}")
