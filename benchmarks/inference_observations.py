"""Which wrong observations `check_observation` flags, and how often it flags right ones.

Each right observation is drawn at a theta of its own from the prior; each wrong one is made of a right one, or comes
from a simulator that is wrong. Sets have 50 rows at one theta.

| kind | what is wrong |
|---|---|
| out of range | one number is 8 standard deviations too large (one row of a set) |
| scale | everything is 2.5 times too large, a wrong unit |
| swapped | two columns that mean different things are exchanged |
| doubled noise | the spread at fixed theta is twice what it should be |
| halved noise | and half of it |
| missing component | the background, or the second component of a mixture, does not occur |
| NaN | one number is NaN |
| stuck | a column has always the same value, an ordinary one; in a spectrum five bins are dead |
| sign | one column has the wrong sign |
| outliers | a tenth of the numbers (rows of a set) come from 4 times as wide a distribution |
| repeated | a set holds 10 rows, five times each; in a spectrum bins 10 to 19 are those before |
| uncorrelated | columns are right one by one, and belong to different rows |

    python benchmarks/inference_observations.py --seeds 5 --trials 1000

prints, for each world, the share that is flagged, with its binomial error (or the spread over seeds, where larger).
A seed fixes the stored simulations (10,000), the observations and what is wrong about them.
"""

import argparse
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from sbi_core import Parameter, Simulations, Simulator, simulate
from sbi_core.inference.checks.familiar import FALSE_ALARM, Familiar
from sbi_core.inference.checks.set_test import set_test
from sbi_core.seeding import seeded
from sbi_core.simulators import SLCP, LinearGaussian, TwoMoons

ROWS, SET = 10_000, 50


class Decay(Simulator):
    """Two kinds of events in four columns: theta = (place of the peak, its share)."""

    parameters = (Parameter("place", -2.0, 2.0), Parameter("share", 0.3, 0.7))
    x_shape = (4,)
    background = True

    def sample(self, theta: Tensor, design: Tensor | None, generator: torch.Generator) -> tuple[Tensor, None]:
        noise = torch.randn(len(theta), 4, generator=generator, dtype=torch.float64)
        peak = (torch.rand(len(theta), generator=generator) < theta[:, 1]) | (not self.background)
        energy = torch.where(peak, theta[:, 0] + 0.4 * noise[:, 0], 4.0 + 1.5 * noise[:, 0])
        angle = 0.5 * energy + 0.5 * noise[:, 1]
        time = torch.exp(0.5 * noise[:, 2]) + 0.2 * energy.abs()
        return torch.stack([energy, angle, time, 3 * noise[:, 3] + 10], 1), None


class Spectrum(Simulator):
    """20 bins: a line of some height and place on a falling background, with correlated noise that falls too."""

    parameters = (Parameter("height", 0.0, 5.0), Parameter("place", 4.0, 16.0))
    x_shape = (20,)
    background, noise = 1.0, 1.0

    def sample(self, theta: Tensor, design: Tensor | None, generator: torch.Generator) -> tuple[Tensor, None]:
        bins = torch.arange(20).double()
        white = torch.randn(len(theta), 20, generator=generator, dtype=torch.float64)
        near = 0.8 * white + 0.6 * white.roll(1, 1)
        line = theta[:, :1] * torch.exp(-0.5 * ((bins - theta[:, 1:]) / 1.5) ** 2)
        mean = line + 5 * self.background * torch.exp(-bins / 8)
        return mean + self.noise * 0.7 * torch.exp(-bins / 20) * near, None


MATRIX = torch.stack([torch.linspace(1, 3, 10), torch.linspace(-1, 1, 10) ** 2, torch.linspace(0, 5, 10).sin()], 1)

WORLDS: dict[str, tuple[Simulator, int, bool]] = {
    "decay, sets": (Decay(), SET, False),
    "two moons, sets": (TwoMoons(), SET, False),
    "linear Gaussian, 10 columns of 3 parameters, sets": (LinearGaussian(matrix=MATRIX), SET, False),
    "SLCP, sets from the simulator": (SLCP(), SET, True),
    "spectrum, single": (Spectrum(), 1, False),
}
"""Name -> simulator, rows of an observation, and whether the check gets the simulator."""


def draw(world: Simulator, count: int, n: int, seed: int) -> Tensor:
    """Observations (count, n, P), each at a theta of its own."""
    with seeded(seed):
        theta = world.prior.sample(torch.Size([count])).double()
    generator = torch.Generator().manual_seed(seed)
    return world.sample(theta.repeat_interleave(n, 0), None, generator)[0].reshape(count, n, -1)


def wrong(world: Simulator, x: Tensor, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Every kind of wrong observation, made of right ones x (B, n, P)."""
    generator = torch.Generator().manual_seed(seed)
    count, n, wide = x.shape
    mean, sd = x.mean((0, 1)), x.std((0, 1))
    single = n == 1
    centre = mean if single else x.mean(1, keepdim=True)
    out = x.clone()
    out[:, 0, 0] += 8 * sd[0]
    yield "out of range", out
    yield "scale", 2.5 * x
    out, (i, j) = x.clone(), (3, 15) if single else (0, 1)
    out[..., [i, j]] = out[..., [j, i]]
    yield "swapped", out
    for name, factor in (("doubled noise", 2.0), ("halved noise", 0.5)):
        yield name, _louder(world, count, factor, seed) if single else centre + factor * (x - centre)
    if isinstance(world, Decay | Spectrum):
        less = type(world)()
        less.background = 0 * less.background
        yield "missing component", draw(less, count, n, seed)
    out = x.clone()
    out[:, n // 2, wide // 2] = torch.nan
    yield "NaN", out
    out = x.clone()
    out[..., 1] = mean[1]
    if single:
        out[..., 10:15] = 0.0
    yield "stuck", out
    out = x.clone()
    out[..., 0] *= -1
    yield "sign", out
    far = mean + 4 * sd * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    lot = torch.rand(count, n * wide if single else n, generator=generator).argsort(1).argsort(1)
    hit = (lot < lot.shape[1] / 10).reshape(count, n, -1)
    yield "outliers", torch.where(hit, far, x)
    yield "repeated", torch.cat([x[..., :10], x[..., :10]], 2) if single else x[:, torch.arange(n) % (n // 5)]
    order = torch.rand((count, 1, wide) if single else x.shape, generator=generator)
    yield "uncorrelated", x.gather(0, order.argsort(0)) if single else x.gather(1, order.argsort(1))


def _louder(world: Simulator, count: int, factor: float, seed: int) -> Tensor:
    loud = type(world)()
    loud.noise = factor * loud.noise  # type: ignore[attr-defined]
    return draw(loud, count, 1, seed)


def flagger(world: Simulator, n: int, exact: bool, seed: int, rows: int = ROWS) -> Callable[[Tensor], bool]:
    """What `check_observation` does with x (n, P), but for simulations that are looked at once for all."""
    data: Simulations = simulate(world, rows, seed=seed, progress=False)[:]
    known = Familiar.of(data.x)
    sets = set_test(known, data, n, simulator=world if exact else None, design=None, seed=seed) if n > 1 else None

    def flagged(x: Tensor) -> bool:
        if not bool(x.isfinite().all()):
            return True
        checks = known.check(x, false_alarm=FALSE_ALARM)
        checks += sets.check(x, false_alarm=FALSE_ALARM) if sets is not None else []
        return any(check.passed is False for check in checks)

    return flagged


def rates(name: str, seed: int, trials: int, wrong_trials: int) -> dict[str, float]:
    """The share of observations that is flagged in one world, for one seed: kind -> share."""
    world, n, exact = WORLDS[name]
    flagged = flagger(world, n, exact, seed)
    found = {"right": sum(map(flagged, draw(world, trials, n, seed + 1000))) / trials}
    x = draw(world, wrong_trials, n, seed + 2000)
    for kind, observations in wrong(world, x, seed + 3000):
        found[kind] = sum(map(flagged, observations)) / wrong_trials
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--wrong", type=int, default=100)
    asked = parser.parse_args()
    for name in WORLDS:
        every = [rates(name, seed, asked.trials, asked.wrong) for seed in range(asked.seeds)]
        print(f"\n{name}")
        for kind in every[0]:
            share = torch.tensor([found[kind] for found in every]).double()
            total = asked.seeds * (asked.trials if kind == "right" else asked.wrong)
            mean = float(share.mean())
            binomial = (mean * (1 - mean) / total) ** 0.5
            spread = float(share.std()) / asked.seeds**0.5 if asked.seeds > 1 else 0.0
            print(f"  {kind:20s} {mean:8.2%} +- {max(binomial, spread):.2%}", flush=True)


if __name__ == "__main__":
    main()
