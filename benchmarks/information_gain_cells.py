"""Gains that are known exactly, and how they are estimated here: the cells of `information_gain.py`."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sbi_core import Events, Parameter, Simulations, Simulator, UniformPrior
from sbi_core.design import bracket, learn, linear_gaussian_gain, posterior_gain
from sbi_core.design.belief import points
from sbi_core.design.information import contrastive
from sbi_core.design.rollouts import see
from sbi_core.simulations import Info
from sbi_core.simulators import AsymmetryToy, DeathProcess, GaltonBoard, LinearGaussian, SourceLocation

BOARD, TOY, EPIDEMIC, FIELD = GaltonBoard(), AsymmetryToy(), DeathProcess(), SourceLocation()
BELIEF = UniformPrior([Parameter("theta", -1.0, 1.0)])
CENTRE, SIDE = (None, 4000, 0.188064), ([25.0, 16.0], 1500, 0.858864)
BEST_TIMES, BEST_GAIN = [0.5439, 2.6781], 0.983271
WORLDS = {
    "1-D": (LinearGaussian(1, latent_std=0.1, noise_std=0.1), 0.5 * math.log(51)),
    "2-D": (LinearGaussian(2, latent_std=0.3, noise_std=0.4), math.log(5)),
    "5-D": (LinearGaussian(5, latent_std=0.5, noise_std=0.5), 2.5 * math.log(3)),
    "8-D": (LinearGaussian(8, latent_std=0.5, noise_std=0.5), 4 * math.log(3)),
}
MEASUREMENTS, CONTRASTS, PUBLISHED = 30, 500_000, (8.303, 0.043, 8.322, 0.045)

RMS, LARGEST, REGRET = "rms error %", "largest error (nats)", "largest regret %"


@dataclass(frozen=True)
class Found:
    """What one seed gave: value and stated error in nats, calls of the simulator, densities evaluated.

    `off` is what is barred, if that is not the value's distance from the exact one; the largest over seeds counts.
    """

    value: float
    error: float
    calls: int
    densities: int
    off: float | None = None


@dataclass(frozen=True)
class Cell:
    """One row of the table: the exact gain, how it is estimated, and the bar for its error, of which kind."""

    exact: float
    estimate: Callable[[int], Found]
    bar: float | None = None
    kind: str = RMS


def learned(setting: Any, calls: int, labels: str) -> Callable[[int], Found]:
    """A head trained on so many balls, and its read-out, which sums over the slots."""

    def estimate(seed: int) -> Found:
        at = None if setting is None else torch.tensor(setting, dtype=torch.float64)
        found = learn(BOARD, BELIEF, calls, designs=at, labels=labels, seed=seed)
        gain = posterior_gain(found.estimator, BOARD, BELIEF, setting, seed=seed)
        return Found(gain.value, gain.error, calls + gain.simulations, gain.evaluations)

    return estimate


def exact(reader: Any, simulator: Simulator, setting: Any, n: int, inner: int, prior: Any = None) -> Any:
    """Read-out of the exact likelihood."""

    def estimate(seed: int) -> Found:
        gain = posterior_gain(reader, simulator, prior or simulator.prior, setting, n=n, inner=inner, seed=seed)
        return Found(gain.value, gain.error, gain.simulations, gain.evaluations)

    return estimate


def closed(world: LinearGaussian, truth: float) -> Callable[[int], Found]:
    """The closed form."""

    def estimate(seed: int) -> Found:
        one = torch.eye(len(world.parameters), dtype=torch.float64)
        value = linear_gaussian_gain(one, world.variance * one, one).value
        return Found(value, 0.0, 0, 0, off=abs(value - truth))

    return estimate


def nested(world: LinearGaussian, n: int, inner: int) -> Callable[[int], Found]:
    """The middle of the bracket of nested Monte Carlo bounds."""

    def estimate(seed: int) -> Found:
        low, high = bracket(world, world.prior, n=n, inner=inner, seed=seed)
        value, error = (low.value + high.value) / 2, max(low.error, high.error)
        return Found(value, error, low.simulations, low.evaluations)

    return estimate


def searches(seed: int, n: int) -> Simulations:
    """n rollouts of `MEASUREMENTS` each, at places drawn from N(0, I): x (n, T), and the places as design (n, 2 T)."""
    generator = torch.Generator().manual_seed(seed)
    theta, shape = points(FIELD.prior, n, seed), (n, MEASUREMENTS)
    at = torch.randn((*shape, 2), generator=generator, dtype=torch.float64)
    x, _ = FIELD.sample(theta[:, None].expand(*shape, -1).flatten(0, 1), at.flatten(0, 1), generator)
    return Simulations(theta, x.reshape(shape), Info(FIELD.parameters), design=at.flatten(1))


def search_reader(rows: Simulations) -> Callable[[Tensor], Tensor]:
    """log p of all measurements of a rollout, one measurement at a time, so that each stays in the cache."""
    places = rows.design.unflatten(1, (-1, 2)).unbind(1)

    def look(theta: Tensor) -> Tensor:
        total = torch.zeros((len(rows), theta.shape[1]), dtype=torch.float64)
        for x, at in zip(rows.x.unbind(1), places, strict=True):
            total += FIELD.log_likelihood(theta, x[:, None, None], at[:, None])
        return total

    return look


def search(n: int, contrasts: int) -> Callable[[int], Found]:
    """sPCE of random places, off 8.28, or infinitely if it contradicts a published bound by 3 joint standard errors.

    Rows come and go one by one, so that only their sums are kept. Published: arXiv:2103.02438, lower and upper bound.
    """

    def estimate(seed: int) -> Found:
        others = points(FIELD.prior, contrasts // 16 * 16, seed, 1)
        gain = contrastive(see(search_reader, searches(seed, n), others), exact=True)
        densities, (low, its, high, error) = n * MEASUREMENTS * (len(others) + 1), PUBLISHED
        agrees = all(abs(gain.value - v) < 3 * math.hypot(gain.error, e) for v, e in ((low, its), (high, error)))
        off = abs(gain.value - 8.28) if agrees else math.inf
        return Found(gain.value, gain.error, n * MEASUREMENTS, densities, off)

    return estimate


def cells() -> dict[str, Cell]:
    """Name -> cell."""
    found: dict[str, Cell] = {}
    bars = {"centre": {"hard": 5.0, "gold": 2.5}, "drop 25": {"hard": 3.0, "gold": 2.0}}
    for place, (setting, calls, truth) in {"centre": CENTRE, "drop 25": SIDE}.items():
        for labels, bar in bars[place].items():
            found[f"galton {place}: learn with {labels} labels"] = Cell(truth, learned(setting, calls, labels), bar)
        found[f"galton {place}: exact reader"] = Cell(truth, exact(BOARD, BOARD, setting, 0, 1024, BELIEF))
    for name, (world, truth) in WORLDS.items():
        found[f"linear {name}: closed form"] = Cell(truth, closed(world, truth), 1e-9, LARGEST)
        found[f"linear {name}: read-out"] = Cell(truth, exact(world, world, None, 88, 512), 1.0)
        found[f"linear {name}: bracket"] = Cell(truth, nested(world, 97, 512))
    for phi, n, truth in ((50.0, 20, 0.1760), (50.0, 100, 0.5566), (47.0, 20, 0.0426)):
        found[f"toy {phi:g} GeV x {n}: exact reader"] = Cell(truth, exact(TOY, Events(TOY, n), [phi], 2048, 256))
    found["death process: exact reader"] = Cell(BEST_GAIN, exact(EPIDEMIC, EPIDEMIC, BEST_TIMES, 2048, 512))
    published = (PUBLISHED[0] + PUBLISHED[2]) / 2
    found["source location: sPCE"] = Cell(published, search(1024, CONTRASTS), 0.20, LARGEST)
    return found
