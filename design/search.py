"""Gaussian-process search for the maximum of a noisy function of the design."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sbi_core.design.belief import points
from sbi_core.design.gain import Gain
from sbi_core.design.gaussian_process import JITTER, GaussianProcess
from sbi_core.errors import InputError, SbiError
from sbi_core.inference.frequentist.maximum import Box
from sbi_core.parameters import Parameter, names
from sbi_core.priors import UniformPrior
from sbi_core.seeding import one_thread

Function = Callable[[Tensor], Gain | tuple[float, float]]
"""A design (K,) -> its value and standard error, or a `Gain`; NaN where it has none."""

WIDE, NEAR = 1024, 128
"""Designs all over the ranges that are thought of before each evaluation, and near the best one, several times."""

NEARER = (0.1, 0.03, 0.01, 0.003)
"""Share of the ranges, to each side, that the latter fill."""

LEAST = 1e-5
"""A promise that is none, of a function without errors, in heights of the Gaussian process."""

BUDGET, NOTHING, ENOUGH = "budget", "nothing to gain", "enough"


@dataclass(frozen=True)
class Found:
    """What a search saw, and the design that it recommends.

    Attributes:
        axes: what the K columns of designs mean.
        designs: those that have a value, in the order of evaluation, (n, K).
        values: theirs, (n,).
        errors: standard errors of the values, (n,).
        excluded: designs that have none, and why.
        process: the Gaussian process given all values.
        best: row of the recommended design: of those evaluated, the one with the highest posterior mean.
        ended: "budget"; "enough" if no design promised what was asked for; "nothing to gain" if none promised anything
            of a function without errors.
    """

    axes: tuple[Parameter, ...]
    designs: Tensor
    values: Tensor
    errors: Tensor
    excluded: dict[tuple[float, ...], str]
    process: GaussianProcess
    best: int
    ended: str

    @property
    def design(self) -> Tensor:
        """The recommended design, (K,)."""
        return self.designs[self.best]

    @property
    def mean(self) -> float:
        """Posterior mean of the function there; the highest of several, so a little too high on average."""
        return float(self.predict(self.design)[0])

    @property
    def sd(self) -> float:
        """Posterior standard deviation of the function there."""
        return float(self.predict(self.design)[1])

    def predict(self, design: Any) -> tuple[Tensor, Tensor]:
        """Posterior mean and standard deviation of the function at designs (*, K), both (*): a curve with its band."""
        return self.process.predict(torch.as_tensor(design, dtype=torch.float64))

    def __str__(self) -> str:
        at = ", ".join(
            f"{axis.name} = {value:.4g}" for axis, value in zip(self.axes, self.design.tolist(), strict=True)
        )
        return f"{at}: {self.mean:.4g} +- {self.sd:.2g} ({len(self.values)} evaluations, {len(self.excluded)} failed)"


def search(
    function: Function,
    designs: tuple[Parameter, ...],
    *,
    budget: int = 40,
    start: Any = None,
    seed: int = 0,
    enough: float = 0.0,
) -> Found:
    """Look for the design with the highest value, few of which can be afforded and all of which have errors.

    After a start all over the ranges each design is the one whose evaluation promises most for the recommendation. An
    evaluation at d moves the posterior mean m_j of each design j, be it one of those seen or d itself, by sigma_j Z,
    Z ~ N(0, 1); with b the best design seen so far it promises

        max_j E[(m_j - m_b + (sigma_j - sigma_b) Z)^+],    sigma_j = cov(g(d), g(j)) / sqrt(var g(d) + e^2),

    the largest term of the knowledge gradient (Frazier, Powell & Dayanik, INFORMS J. Comput. 21 (2009) 599; Scott,
    Frazier & Powell, SIAM J. Optim. 21 (2011) 996), e the median error. Designs are evaluated again where that may
    change the choice; with e = 0 it is the expected improvement of Jones, Schonlau & Welch, J. Global Optim. 13 (1998)
    455. Where the function failed, the Gaussian process sees nothing; the promise is multiplied by the share of designs
    nearby that did not fail, with weights distance^-4.

    Args:
        function: raises an error or returns NaN for a design that cannot be; other designs are then tried.
        designs: K axes with finite ranges; those of whole numbers get whole numbers.
        budget: how often the function is called.
        start: designs to begin with, (S, K), or how many of a Sobol sequence, by default 8 up to K = 3,
            and about 2 K beyond.
        seed: fixes the designs.
        enough: ends the search early, when the best evaluation promises less than this many median errors.

    Raises:
        InputError: if fewer than two designs have a value.

    Example:
        >>> found = search(lambda d: (float(-(d[0] - 2) ** 2), 0.01), (Parameter("angle", 0, 10),), budget=12)
        >>> round(float(found.design[0]), 1), found.ended
        (2.0, 'budget')
    """
    if not designs:
        raise InputError("designs is empty: expected at least one Parameter, such as those of simulator.designs.")
    prior = UniformPrior(designs)
    first, begin = _first(prior, budget, start, seed)
    seen: list[Tensor] = []
    results: list[tuple[float, float]] = []
    excluded: dict[tuple[float, ...], str] = {}
    ended = BUDGET
    for call in range(budget):
        design = first[call]
        if call >= begin and len(seen) > 1:
            process = _process(prior, seen, results)
            design, rise = _next(process, prior, list(excluded), seed, call)
            exact = not bool(process.errors.any())
            if (exact and rise < LEAST * process.height) or rise < enough * float(process.errors.median()):
                ended = NOTHING if exact else ENOUGH
                break
        result, reason = _evaluate(function, design)
        if reason:
            excluded[tuple(design.tolist())] = reason
        else:
            seen.append(design)
            results.append(result)
    if len(seen) < 2:
        why = next((f"; at {list(at)} {reason}" for at, reason in excluded.items()), "")
        raise InputError(
            f"function has a value at {len(seen)} of {budget} designs, expected at least 2{why}. Give start=... "
            "designs that can be, or a larger budget."
        )
    process = _process(prior, seen, results)
    best = int(process.predict(process.designs)[0].argmax())
    return Found(tuple(designs), process.designs, process.values, process.errors, excluded, process, best, ended)


def _first(prior: UniformPrior, budget: int, start: Any, seed: int) -> tuple[Tensor, int]:
    """Designs to be evaluated as long as the Gaussian process does not choose, (budget, K), and how many at least."""
    dims = len(prior.low)
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 2:
        raise InputError(f"budget = {budget!r}: expected a whole number of evaluations, at least 2.")
    if start is None or isinstance(start, int):
        begin = max(8, 2 ** math.ceil(math.log2(2 * dims + 2))) if start is None else start
        if begin < 1:
            raise InputError(f"start = {begin}: expected at least 1 design.")
        return points(prior, budget, seed), begin
    given = torch.as_tensor(start, dtype=torch.float64)
    if given.ndim != 2 or given.shape[1] != dims or not bool(prior.log_prob(given).isfinite().all()):
        raise InputError(
            f"start = {given.tolist()}: expected designs (S, {dims}), each inside the ranges of "
            f"{names(prior.parameters)}, or their number."
        )
    return torch.cat([given, points(prior, budget, seed)])[:budget], len(given)


def _evaluate(function: Function, design: Tensor) -> tuple[tuple[float, float], str]:
    """Value and error at a design (K,), or why there is none."""
    try:
        result = function(design.clone())
    except (SbiError, ValueError, ArithmeticError, RuntimeError) as failure:
        return (math.nan, math.nan), f"{type(failure).__name__}: {failure}"
    try:
        value, error = map(float, (result.value, result.error) if isinstance(result, Gain) else result)
    except (TypeError, ValueError):
        raise InputError(
            f"function returned {result!r} at {design.tolist()}, expected a pair (value, error), or a Gain."
        ) from None
    good = math.isfinite(value) and math.isfinite(error) and error >= 0
    return (value, error), "" if good else f"value {value}, error {error}"


def _process(prior: UniformPrior, seen: list[Tensor], results: list[tuple[float, float]]) -> GaussianProcess:
    values, errors = torch.tensor(results, dtype=torch.float64).T
    return GaussianProcess.fit(Box(prior.low, prior.high), torch.stack(seen), values, errors)


def _next(
    process: GaussianProcess, prior: UniformPrior, excluded: list[tuple[float, ...]], seed: int, call: int
) -> tuple[Tensor, float]:
    """The design (K,) that promises the highest rise of the best posterior mean, and this rise in the values' unit."""
    means, _ = process.predict(process.designs)
    best = int(means.argmax())
    noise = process.errors.square().median() + JITTER * process.height**2
    failed = torch.tensor(excluded, dtype=torch.float64).reshape(-1, len(prior.low))

    def log_rise(designs: Tensor) -> Tensor:
        mean, sd, covariance = process.update(designs)
        ahead = torch.cat([mean[:, None], means.expand(len(designs), -1)], 1) - means[best]
        moves = torch.cat([sd[:, None] ** 2, covariance], 1) / (sd[:, None] ** 2 + noise).sqrt()
        moves = (moves - moves[:, best + 1, None]).abs()
        return _log_improvement(ahead, moves).amax(1) + _log_share(process, designs, failed)

    low, width, integer = prior.low, prior.high - prior.low, prior.integer
    designs = points(prior, WIDE, seed, call + 1)
    offsets = 2 * (designs[:NEAR] - low) / width - 1

    def near(design: Tensor, share: float) -> Tensor:
        moved = design + offsets * torch.maximum(share * width, integer.to(low))
        return torch.where(integer, low + (moved - low).round(), moved).clamp(low, prior.high)

    with one_thread():
        designs = torch.cat([designs, *(near(process.designs[best], share) for share in NEARER)])
        for share in NEARER:
            top = designs[log_rise(designs).argmax()]
            designs = torch.cat([top[None], near(top, share)])
        rises = log_rise(designs)
    return designs[rises.argmax()], float(rises.max().exp())


def _log_improvement(ahead: Tensor, sd: Tensor) -> Tensor:
    """log E[(ahead + sd Z)^+], Z ~ N(0, 1), of (*) and (*), as (*): log sd + log(phi(u) + u Phi(u)), u = ahead / sd.

    Below u = -1 both terms nearly cancel; phi(u) (1 + u sqrt(pi / 2) erfcx(-u / sqrt 2)) does not, down to u = -1e5.
    """
    u = (ahead / sd.clamp(min=1e-300)).clamp(-1e5, 1e150)
    density = (-(u**2) / 2).exp() / math.sqrt(2 * math.pi)
    plain = (density + u * torch.special.ndtr(u)).log()
    low = u.clamp(max=-1.0)
    tail = (1 + low * math.sqrt(math.pi / 2) * torch.special.erfcx(-low / math.sqrt(2))).log() - low**2 / 2
    return sd.log() + torch.where(u > -1, plain, tail - math.log(2 * math.pi) / 2)


def _log_share(process: GaussianProcess, designs: Tensor, failed: Tensor) -> Tensor:
    """Log share of designs near each of (M, K) at which the function did not fail, (M,); weights are distance^-4."""
    good, bad = (
        (((designs - other[:, None]) / process.box.width).square().sum(-1) + 1e-12).pow(-2).sum(0)
        for other in (process.designs, failed)
    )
    return good.log() - (good + bad).log()
