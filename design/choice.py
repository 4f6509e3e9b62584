"""Which setting next: utilities compared over candidates, a box, or whatever a user calls useful."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.columns import to_column
from sbi_core.design.gain import NONE, Gain
from sbi_core.design.information import posterior_gain
from sbi_core.design.search import search
from sbi_core.errors import InputError
from sbi_core.parameters import Parameter, names
from sbi_core.seeding import fresh_seed
from sbi_core.simulator import Simulator

Utility = Callable[..., Any]
"""(estimator, simulator, prior, design, *, seed) -> `Gain`, or a value, or a value and its standard error."""

Cost = Callable[[Tensor], float]
"""design (K,) -> a positive number."""


@dataclass(frozen=True)
class Choice:
    """The design that teaches most, and what the others would have taught.

    Attributes:
        design: the chosen one, (K,).
        gain: its utility, estimated anew: the largest of several noisy estimates is too large.
        designs: the axes.
        candidates: all that were looked at, (C, K).
        gains: their utilities, from common random numbers; `None` for the excluded.
        costs: what each utility was divided by to rank them, (C,).
        excluded: position among the candidates -> why it was left out.
        seed: fixes all.
        flags: what a careful reader should know.
    """

    design: Tensor
    gain: Gain
    designs: tuple[Parameter, ...]
    candidates: Tensor
    gains: tuple[Gain | None, ...]
    costs: Tensor
    excluded: Mapping[int, str]
    seed: int
    flags: tuple[str, ...] = field(default=())

    @property
    def values(self) -> Tensor:
        """Utility per cost of each candidate, (C,); NaN for the excluded."""
        return torch.tensor([math.nan if g is None else g.value for g in self.gains]).double() / self.costs

    @property
    def errors(self) -> Tensor:
        """Standard errors of these, (C,)."""
        return torch.tensor([math.nan if g is None else g.error for g in self.gains]).double() / self.costs

    def draw(self, axes: Any) -> Any:
        """Draw the curve with its error bars, for one design axis; returns the axes, ()."""
        if len(self.designs) != 1:
            raise InputError(f"Choice.draw: a curve needs one design, these are {names(self.designs)}.")
        order = self.candidates[:, 0].argsort()
        at, value, error = (v[order].numpy() for v in (self.candidates[:, 0], self.values, self.errors))
        axes.errorbar(at, value, error, fmt="o-", ms=3, lw=1, capsize=2, color="#0072B2")
        axes.axvline(float(self.design), color="#D55E00", lw=1, ls="--", label="chosen")
        axes.set(xlabel=self.designs[0].label, ylabel="expected gain [nats]")
        axes.legend()
        return axes


def propose(
    simulator: Simulator,
    estimator: Any,
    prior: Distribution,
    candidates: Any = None,
    utility: Utility = posterior_gain,
    *,
    cost: Cost | None = None,
    budget: int = 40,
    confirm: bool = True,
    seed: int | None = None,
    workers: int = 1,
    **options: Any,
) -> Choice:
    """The design with the largest utility per cost, by default the expected information gain.

    All candidates are compared with common random numbers. Those at which the simulator or the utility raises, gives
    NaN, or always the same x are left out, with their reason.

    Args:
        simulator: what is to be run; `Events` for runs of the size that will be taken.
        estimator: what the utility reads: f(theta, x, design), or an exact simulator.
        prior: the current belief, event shape (D,).
        candidates: designs (C, K), or (C,) numbers for one axis; `None` searches the designs' whole box (see `search`).
        utility: `posterior_gain`, any other of this package with that signature, `partial(expected_width, of=...)`, or
            one's own.
        cost: of a design; utilities are divided by it.
        budget: designs to look at in a search.
        confirm: whether to estimate the utility of the chosen design once more with fresh random numbers.
        seed: fixes all; `None` takes a fresh one.
        workers: processes that share the candidates; the answer does not depend on it.
        options: of the utility, such as n and inner.

    Raises:
        InputError: if no candidate is left.
    """
    seed = fresh_seed() if seed is None else seed
    axes = simulator.designs
    if not axes:
        raise InputError(f"simulator '{simulator.name}' has no designs to choose from.")
    judge = _Judge(utility, estimator, simulator, prior, cost, seed, options)
    flags: tuple[str, ...] = ()
    if candidates is None:
        found = search(judge.pair, axes, budget=budget, seed=seed)
        points, best = found.designs, found.best
    else:
        points, best = _rows(candidates, axes), None
        judge.all(points, workers)
    seen = [judge(design) for design in points]
    excluded = {k: one for k, one in enumerate(seen) if isinstance(one, str)}
    gains = tuple(None if isinstance(one, str) else one for one in seen)
    costs = torch.tensor([judge.cost(design) for design in points], dtype=torch.float64)
    score = torch.tensor([-math.inf if g is None else g.value for g in gains]).double() / costs
    if len(excluded) == len(points):
        raise InputError(f"all {len(points)} designs are excluded, the first because: {excluded[0]}")
    best = int(score.argmax()) if best is None else best
    gain = gains[best]
    assert gain is not None  # excluded designs score minus infinity
    if confirm:
        again = _Judge(utility, estimator, simulator, prior, cost, seed + 1, options)(points[best])
        if isinstance(again, str):
            raise InputError(f"design {points[best].tolist()} was chosen, and failed when looked at again: {again}")
        gain = again
    if excluded:
        flags = (f"{len(excluded)} of {len(points)} designs are excluded, the first because: {_first(excluded)}",)
    return Choice(points[best], gain, axes, points, gains, costs, excluded, seed, (*flags, *gain.flags))


class _Judge:
    """Utilities of designs, each estimated once."""

    def __init__(
        self,
        utility: Utility,
        estimator: Any,
        simulator: Simulator,
        prior: Distribution,
        cost: Cost | None,
        seed: int,
        options: Mapping[str, Any],
    ) -> None:
        self._ask = (utility, estimator, simulator, prior)
        self._cost = cost
        self._options = {"seed": seed, **options}
        self._known: dict[tuple[float, ...], Gain | str] = {}

    def cost(self, design: Tensor) -> float:
        """Of a design (K,)."""
        value = 1.0 if self._cost is None else float(self._cost(design))
        if not value > 0 or math.isinf(value):
            raise InputError(f"cost({design.tolist()}) = {value}: expected a positive number.")
        return value

    def __call__(self, design: Tensor) -> Gain | str:
        """The utility at a design (K,), or why there is none."""
        key = tuple(design.tolist())
        if key not in self._known:
            self._known[key] = _utility(*self._ask, design, self._options)
        return self._known[key]

    def pair(self, design: Tensor) -> tuple[float, float]:
        """Utility per cost at a design (K,), and its error."""
        found = self(design)
        if isinstance(found, str):
            raise InputError(found)
        cost = self.cost(design)
        return found.value / cost, found.error / cost

    def all(self, designs: Tensor, workers: int) -> None:
        """Judge many designs (C, K), on several processes if asked."""
        if workers == 1:
            return
        from loky import ProcessPoolExecutor

        with ProcessPoolExecutor(max_workers=workers) as pool:
            futures = [pool.submit(_utility, *self._ask, design, self._options) for design in designs]
            for design, future in zip(designs, futures, strict=True):
                self._known[tuple(design.tolist())] = future.result()


def _utility(
    utility: Utility, estimator: Any, simulator: Simulator, prior: Distribution, design: Tensor, options: dict[str, Any]
) -> Gain | str:
    try:
        found = utility(estimator, simulator, prior, design, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if not isinstance(found, Gain):
        value, error = found if isinstance(found, tuple) else (found, 0.0)
        found = Gain(float(value), float(error), NONE, getattr(utility, "__name__", "utility"))
    if not (math.isfinite(found.value) and math.isfinite(found.error)):
        return f"EIG bound or utility is {found.value} +- {found.error}"
    return found


def _rows(candidates: Any, axes: tuple[Parameter, ...]) -> Tensor:
    rows = to_column("design", candidates).to(torch.float64)
    rows = rows[:, None] if rows.ndim == 1 and len(axes) == 1 else rows
    if rows.ndim != 2 or rows.shape[1] != len(axes) or not len(rows):
        raise InputError(f"candidates have shape {tuple(rows.shape)}, expected (C, {len(axes)}) for {names(axes)}.")
    return rows


def _first(excluded: Mapping[int, str]) -> str:
    return excluded[min(excluded)]
