"""Designs that are chosen, and what they lose of the best: cells of `information_gain.py` with curves and regrets."""

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from information_gain_cells import BELIEF, BEST_GAIN, BOARD, EPIDEMIC, LARGEST, REGRET, TOY, Cell, Found
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from sbi_core import Events, Parameter, Simulator, UniformPrior, simulate
from sbi_core.design import Choice, learn, posterior_gain, propose
from sbi_core.design.belief import unit_points
from sbi_core.estimators import LikelihoodEstimator, fit, nle, nre_gold
from sbi_core.estimators.losses import Batch, needs

ENERGIES = torch.linspace(45, 50, 11, dtype=torch.float64)
LOW, HIGH = torch.tensor([-2.5, -1.5]).double(), torch.tensor([1.0, 2.0]).double()
"""Logarithms of the first time and of the wait for the second, within which times are looked for."""


def legendre(low: float, high: float, n: int) -> tuple[Tensor, Tensor]:
    """Points (n,) and weights (n,) of the mean over an interval."""
    points, weights = np.polynomial.legendre.leggauss(n)
    return torch.from_numpy(low + (high - low) * (points + 1) / 2), torch.from_numpy(weights / 2)


def summed(log_p: Tensor, weight: Tensor) -> float:
    """Gain of one of X outcomes, log p (T, X), about theta of T cells of probability weight (T,)."""
    p = log_p.exp()
    return float(weight @ torch.where(p > 0, p * (log_p - (weight @ p).log()), 0.0).sum(1))


@cache
def toy_gain(phi: float, events: int, runs: int = 2**15) -> float:
    """Gain of a run of the toy: quadrature over g, a mean over runs, less its regression on what posteriors balance.

    Accurate to about .0002 nats for 2^15 runs; common random numbers for all phi.
    """
    g, weight = legendre(0.5, 1.5, 40)
    at, generator = torch.tensor([phi]).double(), torch.Generator().manual_seed(1)
    kl, off, belief = [], [], torch.stack([g, g**2], 1)
    for part in (0.5 + (torch.arange(runs).double() + 0.5) / runs).split(max(1, 100_000 // events)):
        c, _ = TOY.sample(part.repeat_interleave(events)[:, None], at, generator)
        a = 4 / 3 * math.tanh((2 * phi - 90) / 9) * g
        cosine = c.reshape(len(part), events, 1)
        log_p = torch.stack([((1 + cosine**2 + slope * cosine).log()).sum((1, 2)) for slope in a], 1)
        posterior = (log_p + weight.log()).softmax(1)
        kl.append((posterior * (posterior / weight).clamp(min=1e-300).log()).sum(1))
        off.append(posterior @ belief - weight @ belief)
    value, known = torch.cat(kl), torch.cat(off)
    slope = torch.linalg.lstsq(known - known.mean(0), (value - value.mean())[:, None]).solution[:, 0]
    return float(value.mean() - known.mean(0) @ slope)


def read_curve(reader: Any, n: int, seed: int) -> Found:
    """Largest error of the curve of 20 events, read from n runs at each energy; the value is that at 50 GeV."""
    run = Events(TOY, 20)
    gains = [posterior_gain(reader, run, TOY.prior, phi[None], n=n, inner=n // 8, seed=seed) for phi in ENERGIES]
    off = max(abs(gain.value - toy_gain(float(phi), 20)) for gain, phi in zip(gains, ENERGIES, strict=True))
    calls, densities = (sum(getattr(gain, name) for gain in gains) for name in ("simulations", "evaluations"))
    return Found(gains[-1].value, gains[-1].error, calls, densities, off)


def learned_curve(events: int, seed: int) -> Found:
    """The same from an estimator trained on so many events at energies of 40 to 50 GeV."""
    found = learn(TOY, TOY.prior, events, designs=UniformPrior(TOY.designs), labels="gold", seed=seed)
    read = read_curve(found.estimator, 1024, seed)
    return Found(read.value, read.error, read.calls + events, read.densities, read.off)


@cache
def best_rate() -> float:
    """The largest gain of the rate variant, nats."""
    return max(rate_gain(phi) for phi in torch.arange(48.0, 49.05, 0.1).tolist())


def rate_gain(phi: float) -> float:
    """Of as many events as there are at phi."""
    return toy_gain(phi, int(TOY.rate_events(torch.tensor([[phi]]))))


def rate_choice(seed: int) -> Found:
    """What `propose` finds in the box, in percent of the best."""
    run = Events(TOY, n=TOY.rate_events)
    choice = propose(run, TOY, TOY.prior, n=256, inner=128, budget=24, seed=seed)
    gains = [choice.gain, *(gain for gain in choice.gains if gain is not None)]
    calls, densities = (sum(getattr(gain, name) for gain in gains) for name in ("simulations", "evaluations"))
    exact = rate_gain(float(choice.design))
    return Found(exact, choice.gain.error, calls, densities, 100 * (1 - exact / best_rate()))


class Counts(Simulator):
    """The death process in logarithms: theta = log b, design = (log t_1, log (t_2 - t_1)); x are both counts."""

    parameters = (Parameter("log_b", -5.0, 5.0),)
    designs = (Parameter("log_t", float(LOW[0]), float(HIGH[0])), Parameter("log_wait", float(LOW[1]), float(HIGH[1])))
    x_shape: tuple[int, ...] = (2,)

    @property
    def prior(self) -> Distribution:
        zero = torch.zeros(1, dtype=torch.float64)
        return Independent(Normal(zero, zero + 1), 1)

    def sample(self, theta: Tensor, design: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return EPIDEMIC.sample(theta.exp(), times(design), generator)

    def log_joint(self, theta: Tensor, x: Tensor, z: Tensor | None, design: Tensor | None) -> Tensor:
        return EPIDEMIC.log_joint(theta.exp(), x, z, None)


class Pairs(Counts):
    """The same, x the number of the pair, 11 n_1 + n_2, so that a read-out sums over pairs."""

    x_shape, categories = (1,), 121


class PairReader:
    """What a density of both counts says of the number of the pair."""

    normalized, trained = "x", True
    axes, designs, x_shape = Pairs.parameters, Pairs.designs, Pairs.x_shape

    def __init__(self, head: LikelihoodEstimator) -> None:
        self.head = head

    def observe(self, x: Tensor, design: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        return self.head.observe(torch.cat([x // 11, x % 11], -1), design)


def times(design: Any) -> Tensor:
    """t_1 and t_2 (*, 2)."""
    first, wait = design.exp().unbind(-1)
    return torch.stack([first, first + wait], -1)


def epidemic_gain(design: Tensor) -> float:
    """Exact, at logarithms (2,), by all pairs of counts."""
    u = torch.linspace(-8, 8, 2001, dtype=torch.float64)
    ill = torch.cartesian_prod(torch.arange(11), torch.arange(11))
    possible = ill[ill[:, 0] <= ill[:, 1]].double()
    log_p = EPIDEMIC.log_likelihood(u.exp()[:, None, None], possible, times(design))
    return summed(log_p, torch.softmax(-(u**2) / 2, 0))


@needs("theta_alt", "joint_log_ratio", density="x", contrasts=9)
def labelled(estimator: Any, batch: Batch) -> Tensor:
    """`nle` and `nre_gold` together, as in `learn` for labels."""
    return nle(estimator, batch) + nre_gold(estimator, batch)


@cache
def chosen_times(labels: str, seed: int) -> tuple[float, float, float, int]:
    """Gain as read and exact at the chosen times, stated error and densities: 5,000 epidemics, no likelihood of x.

    2,000 of them are spread over the box; the others are at the eighth of 256 designs that these say is best, of which
    one is chosen.
    """
    grid, spread = (LOW + (HIGH - LOW) * unit_points(2, *args) for args in ((256, 99), (2000, seed, 7)))
    first = times_choice(nle, spread, grid, seed)
    best = grid[first.values.argsort(descending=True)[: len(grid) // 8]]
    spread = torch.cat([spread, best[torch.arange(3000) % len(best)]])
    choice = times_choice(nle if labels == "hard" else labelled, spread, best, seed)
    densities = sum(gain.evaluations for gain in (*first.gains, *choice.gains) if gain is not None)
    return choice.gain.value, epidemic_gain(choice.design), choice.gain.error, densities


def times_choice(loss: Any, spread: Tensor, grid: Tensor, seed: int) -> Choice:
    """The best of a grid (C, 2) by a head that is trained on one epidemic at each of spread (N, 2)."""
    world, pairs = Counts(), Pairs()
    data = simulate(world, len(spread), design=spread, seed=seed, progress=False)
    head = LikelihoodEstimator.from_data(data, labels={0: 11, 1: 11})
    run = fit(head, loss, data, simulator=world, seed=seed, progress=False, weight_decay=0.0)
    return propose(pairs, PairReader(run.estimator), pairs.prior, grid, inner=128, seed=seed)


def times_regret(labels: str, seed: int) -> Found:
    """In percent of the best."""
    _, truth, error, densities = chosen_times(labels, seed)
    return Found(truth, error, 5000, densities, 100 * (1 - truth / BEST_GAIN))


def times_gain(labels: str, seed: int) -> Found:
    """The gain there as read, in units of the exact one there."""
    value, truth, error, densities = chosen_times(labels, seed)
    return Found(value / truth * BEST_GAIN, error, 5000, densities)


@cache
def board_gains() -> tuple[Tensor, Tensor]:
    """All designs of the board (620, 2), and their exact gains (620,)."""
    designs = torch.cartesian_prod(torch.arange(31), torch.arange(1, 21)).double()
    theta, weight = legendre(-1, 1, 200)
    return designs, torch.tensor([summed(BOARD.log_probabilities(theta[:, None], d), weight) for d in designs]).double()


def board_choice(calls: int, seed: int) -> Found:
    """The design chosen of 620: a third of the balls on all of them, on the best eighth, and on the best of these.

    Each time one head is trained on all balls so far, at last with gold. It is sequential halving (Karnin, Koren &
    Somekh, ICML 2013), by eighths: only the last candidates can be chosen.
    """
    designs, gains = board_gains()
    left, used, densities = designs, designs[:0], 0
    for part in (1, 2, 3):
        new = calls * part // 3 - len(used)
        used = torch.cat([used, left[torch.arange(new) % len(left)]])
        labels = "gold" if part == 3 else "hard"
        found = learn(BOARD, BELIEF, len(used), designs=used, labels=labels, seed=seed)
        choice = propose(BOARD, found.estimator, BELIEF, left, inner=128, seed=seed)
        densities += sum(gain.evaluations for gain in choice.gains if gain is not None)
        left = left[choice.values.argsort(descending=True)[: len(left) // 8]]
    truth = float(gains[(designs == choice.design).all(1)])
    return Found(truth, choice.gain.error, calls, densities, 100 * (1 - truth / float(gains.max())))


def choices() -> dict[str, Cell]:
    """Name -> cell."""
    found = {
        "toy curve of 20 events: exact reader": Cell(
            toy_gain(50.0, 20), partial(read_curve, TOY, 2048), 0.005, LARGEST
        ),
        "toy curve of 20 events: learn": Cell(toy_gain(50.0, 20), partial(learned_curve, 10_000), 0.005, LARGEST),
        "toy rate: propose": Cell(0.522, rate_choice, 1.5, REGRET),
    }
    for labels in ("hard", "gold"):
        found[f"death process times: {labels} labels"] = Cell(BEST_GAIN, partial(times_regret, labels), 1.0, REGRET)
        found[f"death process gain there: {labels} labels"] = Cell(BEST_GAIN, partial(times_gain, labels), 2.0)
    found["galton 620 designs: halving"] = Cell(0.858864, partial(board_choice, 50_000), 1.0, REGRET)
    return found
