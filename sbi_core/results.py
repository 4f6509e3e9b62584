"""What a run found, and every number of it with its verdict."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.campaign import simulate
from sbi_core.gold import joint_log_ratio
from sbi_core.inference.grid import GridPosterior
from sbi_core.parameters import Parameter
from sbi_core.seeding import seeded, torch_generator
from sbi_core.simulations import Simulations
from sbi_core.simulator import Simulator

LEVEL = 0.683
"""Probability of the intervals that are quoted."""

RANGE = "x_obs inside the simulated range"
"""The check that says whether the estimator has seen anything like the observation."""

CLOSE = 0.15
"""Total variation up to which two posteriors are called close."""

SMALL = 1 / 3
"""Part of the log ratio's own rms up to which its error is called small."""

BAND = (0.5, 0.7, 1.4)
"""Standard deviations by which a mean may be off, and ratios of standard deviations, to be called close."""

FRESH = 3000
"""Rows simulated to compare learned and exact log ratios."""


@dataclass(frozen=True)
class LogRatios:
    """log p(x | theta) - log p(x | theta'), one entry a row, from several sources.

    Attributes:
        learned: by the estimator, (N,).
        exact: by the simulator's own log likelihood, (N,), or `None`.
        joint: log p(x, z | theta) - log p(x, z | theta'), (N,), or `None`.
    """

    learned: Tensor
    exact: Tensor | None
    joint: Tensor | None

    @property
    def rms(self) -> float:
        """Root mean square of learned minus exact; NaN where nothing is exact."""
        return math.nan if self.exact is None else float((self.learned - self.exact).square().mean().sqrt())

    @property
    def spread(self) -> float:
        """Root mean square of the exact log ratio itself: the error of saying nothing."""
        return math.nan if self.exact is None else float(self.exact.square().mean().sqrt())


def compare_log_ratios(estimator: Any, simulator: Simulator | None, data: Any, *, seed: int = 0) -> LogRatios:
    """Evaluate log ratios of each row's own theta against another row's.

    Args:
        estimator: anything with `log_likelihood`.
        simulator: for the exact and the joint log ratio, where it knows them.
        data: N rows, best ones that the estimator has not seen.
        seed: of the pairing.

    Returns:
        Log ratios (N,), without rows where one of them is infinite.
    """
    rows: Simulations = data[:]
    rows = rows[rows.valid]
    order = torch.randperm(len(rows), generator=torch_generator(np.random.SeedSequence(seed)))
    theta, other = rows.theta, rows.theta[order]
    counts = {} if rows.n_events is None else {"n_events": rows.n_events}

    def difference(source: Any) -> Tensor:
        with torch.no_grad():
            ends = [source.log_likelihood(at, rows.x, rows.design, **counts).double() for at in (theta, other)]
        return ends[0] - ends[1]

    columns = {"learned": difference(estimator)}
    if simulator is not None and simulator.is_exact:
        columns["exact"] = difference(simulator)
    if simulator is not None and simulator.has_gold and rows.z is not None:
        columns["joint"] = joint_log_ratio(simulator, rows, theta, other)
    kept = torch.stack(list(columns.values())).isfinite().all(0)
    found = {name: value[kept] for name, value in columns.items()}
    return LogRatios(found["learned"], found.get("exact"), found.get("joint"))


def fresh_rows(simulator: Simulator, prior: Distribution, *, seed: int) -> Simulations:
    """Simulate rows that no training has seen: theta (3000, D) from the prior."""
    other = int(np.random.SeedSequence(seed, spawn_key=(2**20,)).generate_state(1)[0])
    rows: Simulations = simulate(simulator, FRESH, proposal=prior, seed=other, progress=False)
    return rows


def cell_volume(points: Sequence[Tensor]) -> float:
    """Volume of one cell of a regular grid given by its cell centres, D tensors (K,)."""
    return math.prod(float(axis[-1] - axis[0]) / max(len(axis) - 1, 1) for axis in points)


def total_variation(posterior: Any, other: Any) -> float:
    """1 - integral of min(p, q), in [0, 1]: on the grid of the other posterior, or over 5000 of its draws.

    By draws it is the mean of max(0, 1 - p / q), with an error of about 1 / (2 * 5000^(1/2)) = 0.007.
    """
    if isinstance(other, GridPosterior):
        points, log_density = other.grid()
        theta = torch.stack(torch.meshgrid(*points, indexing="ij"), -1)
        shared = torch.minimum(posterior.log_prob(theta), log_density).exp().sum() * cell_volume(points)
        return min(max(1.0 - float(shared), 0.0), 1.0)
    with seeded(0), torch.no_grad():
        theta = other.sample(torch.Size([5000]))
        log_ratio = posterior.log_prob(theta) - other.log_prob(theta)
    return float((1 - log_ratio.exp()).clamp(min=0).mean())


@dataclass(frozen=True)
class Results:
    """Everything a report shows; what is `None` or empty was not there, and its section is left out.

    Attributes:
        name: of the study.
        parameters: the D axes of theta.
        settings: what was asked, plain data.
        seed: of the run.
        versions: of the packages, and of the simulator.
        simulator: the world.
        data: the simulations, or some of them.
        n_simulations: how many there are.
        gold: `GoldCheck.to_json()`.
        training: history, loss, rows, flags and seed of the training.
        posterior: of the learned likelihood.
        exact: the posterior of the exact likelihood.
        x_obs: observations (n, *event).
        ratios: learned against exact log ratios.
        diagnosis: of the posteriors (see `diagnose`).
        predicted: replicates of the observation (see `replicate`).
        limits: confidence sets by the name of the parameter (see `limits`).
        seconds: by stage.
        notes: sentences that a careful reader should know.
    """

    name: str
    parameters: tuple[Parameter, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    simulator: Simulator | None = None
    data: Simulations | None = None
    n_simulations: int = 0
    gold: Mapping[str, Any] | None = None
    training: Mapping[str, Any] | None = None
    posterior: Any = None
    exact: Any = None
    x_obs: Tensor | None = None
    ratios: LogRatios | None = None
    diagnosis: Any = None
    predicted: Any = None
    limits: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def headline(self) -> str:
        """The result in one line: each parameter, its interval and the exact ones."""
        if self.posterior is None:
            return f"trained on {self.n_simulations:,} simulations; nothing was observed"
        found = []
        for k, learned in enumerate(sentences(self.posterior)):
            exact = "" if self.exact is None else f" (exact: {sentences(self.exact, short=True)[k]})"
            found.append(learned + exact)
        return "; ".join(found)

    def numbers(self) -> dict[str, dict[str, Any]]:
        """Every number of the run: name -> value, unit and verdict."""
        found = {**_posterior_numbers(self), **_quality_numbers(self)}
        return {name: {"value": value, "unit": unit, "verdict": said} for name, (value, unit, said) in found.items()}

    def unchecked(self) -> list[str]:
        """What was not checked, in sentences."""
        found = [f"{name}: {n['verdict']}" for name, n in self.numbers().items() if "unchecked" in n["verdict"]]
        if self.posterior is not None:
            said = [f"{name}: {text}" for name, text in self.posterior.verdicts.items() if "unchecked" in text]
            found += [line for line in said if line not in found]
        if self.training is not None and self.gold is None:
            found.insert(0, "gold: unchecked, the joint ratios and scores were believed as they came")
        return found

    def summary(self) -> dict[str, Any]:
        """Plain data for `summary.json`."""
        checks = {} if self.posterior is None else dict(self.posterior.verdicts)
        flags = [] if self.posterior is None else list(self.posterior.flags)
        training = (
            {}
            if self.training is None
            else {k: v for k, v in self.training.items() if k not in ("history", "gold", "x_range")}
        )
        return {
            "result": self.headline(),
            "numbers": self.numbers(),
            "checks": checks,
            "unchecked": self.unchecked(),
            "flags": [*flags, *training.get("flags", []), *self.notes],
            "limits": {name: found.summary() for name, found in self.limits.items()},
            "diagnosis": "unchecked" if self.diagnosis is None else self.diagnosis.to_json(),
            "posterior_predictive": "unchecked" if self.predicted is None else self.predicted.to_json(),
            "gold_check": "unchecked" if self.gold is None else self.gold,
            "training": training,
            "seed": self.seed,
            "seconds": dict(self.seconds),
            "versions": dict(self.versions),
            "settings": dict(self.settings),
        }


def sentences(posterior: Any, *, short: bool = False) -> list[str]:
    """Mean and interval of each parameter of a posterior; `short` leaves the words out."""
    found = []
    for k, axis in enumerate(posterior.parameters):
        mean, low, high, digits = estimate(posterior, k)
        unit = f" {axis.unit}" if axis.unit else ""
        interval = f"[{_fixed(low, digits)}, {_fixed(high, digits)}]"
        words = f"{axis.name} = {_fixed(mean, digits)}{unit}, {LEVEL:.0%} interval {interval}"
        found.append(f"{_fixed(mean, digits)}, {interval}" if short else words)
    return found


def estimate(posterior: Any, k: int) -> tuple[float, float, float, int]:
    """Mean and interval of parameter k of a posterior with mean (D,), and the decimals worth printing."""
    low, high = posterior.credible_interval(LEVEL)
    spread = float(posterior.stddev[k])
    digits = max(0, 1 - math.floor(math.log10(spread))) if spread > 0 else 3
    return float(posterior.mean[k]), float(low[k]), float(high[k]), min(digits, 12)


def _fixed(value: float, digits: int) -> str:
    """Write a number with so many decimals, and no minus before zero."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def _posterior_numbers(results: Results) -> dict[str, tuple[float, str, str]]:
    if results.posterior is None:
        return {}
    found = {}
    for k, axis in enumerate(results.parameters):
        mean, low, high, _ = estimate(results.posterior, k)
        spread = float(results.posterior.stddev[k])
        said = dict.fromkeys(("mean", "sd", "low", "high"), "unchecked: no exact likelihood to compare with")
        if results.exact is not None:
            width = float(results.exact.stddev[k])
            ends = zip(("mean", "low", "high"), (mean, low, high), estimate(results.exact, k)[:3], strict=True)
            for name, value, true in ends:
                off = (value - true) / width
                said[name] = f"{_judged(abs(off) < BAND[0])}: {off:+.2f} sd from the exact {true:.4g}"
            fits = BAND[1] < spread / width < BAND[2]
            said["sd"] = f"{_judged(fits)}: {spread / width:.2f} times the exact {width:.4g}"
        for name, value in (("mean", mean), ("sd", spread), ("low", low), ("high", high)):
            what = f"{axis.name} {name}" + (f" of the {LEVEL:.0%} interval" if name in ("low", "high") else "")
            found[what] = value, axis.unit, said[name]
    if results.exact is not None:
        distance = total_variation(results.posterior, results.exact)
        said_so = f"{_judged(distance <= CLOSE)}: 0 is the exact posterior, 1 another world; close is at most {CLOSE}"
        found["total variation to the exact posterior"] = distance, "", said_so
    else:
        found["total variation to the exact posterior"] = math.nan, "", "unchecked: the exact posterior is not known"
    return found


def _judged(close: bool) -> str:
    return "close" if close else "NOT close"


def _quality_numbers(results: Results) -> dict[str, tuple[float, str, str]]:
    found: dict[str, tuple[float, str, str]] = {}
    if results.x_obs is not None:
        said = results.posterior.verdicts.get(RANGE, "unchecked") if results.posterior is not None else "unchecked"
        found["observations"] = len(results.x_obs), "", said
    if results.n_simulations:
        valid = None if results.data is None else float(results.data.valid.double().mean())
        said = "unchecked" if valid is None else f"{valid:.1%} of the rows looked at are finite"
        found["simulations"] = results.n_simulations, "", said
    if results.gold is not None:
        largest = max((abs(test["z"]) for test in results.gold["tests"]), default=math.nan)
        found["largest |z| of the gold check"] = largest, "", str(results.gold["verdict"])
    if results.ratios is not None and results.ratios.exact is not None:
        rms, spread = results.ratios.rms, results.ratios.spread
        close = "small" if rms < SMALL * spread else "NOT small"
        rows = f"{len(results.ratios.exact):,} fresh rows"
        said = f"{close}: {rms / spread:.1%} of the log ratio's own rms {spread:.3g} ({rows})"
        found["rms error of the log ratio"] = rms, "nats", said
    elif results.training is not None:
        found["rms error of the log ratio"] = math.nan, "nats", "unchecked: the exact log ratio is not known"
    if results.training is not None:
        best, last = results.training["best_epoch"], int(results.training["history"]["epoch"][-1])
        looks = dict(zip(*(results.training["history"][name] for name in ("epoch", "validation")), strict=True))
        value, kept = looks.get(best, math.nan), f"at epoch {best} of {last}, whose weights were kept"
        if best == 0:
            kept = f"none of {last} epochs was better than what training began with, which was kept"
        said = f"{kept}; training ended by {results.training['ended']}"
        found["held-out loss"] = value, "nats", said
    return found
