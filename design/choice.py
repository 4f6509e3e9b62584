"""Which setting next: utilities compared over candidates, a box, or whatever a user calls useful."""

import math
from collections import Counter
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
from sbi_core.seeding import derived_seed, fresh_seed, one_thread, seeded
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
        return _column([math.nan if g is None else g.value for g in self.gains]) / self.costs

    @property
    def errors(self) -> Tensor:
        """Standard errors of these, (C,)."""
        return _column([math.nan if g is None else g.error for g in self.gains]) / self.costs

    def __str__(self) -> str:
        at = ", ".join(
            f"{axis.name} = {value:.4g}" for axis, value in zip(self.designs, self.design.tolist(), strict=True)
        )
        return f"{at}: {self.gain}, of {len(self.candidates)} candidates, {len(self.excluded)} of them excluded"


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
            one's own, which the generators of torch, NumPy and random are seeded for.
        cost: of a design; utilities, which must then be positive, are divided by it.
        budget: designs to look at in a search.
        confirm: whether to estimate the utility of the chosen design once more with fresh random numbers; if that
            fails, it is left out too.
        seed: fixes all; `None` takes a fresh one.
        workers: processes that share the candidates; the answer does not depend on it. A search has but one.
        options: of the utility, such as n and inner.

    Raises:
        InputError: if no candidate is left, or for a cost that is not positive.
    """
    seed = fresh_seed() if seed is None else seed
    axes = simulator.designs
    if not axes:
        raise InputError(f"simulator '{simulator.name}' has no designs to choose from.")
    if workers < 1:
        raise InputError(f"workers = {workers}, expected at least 1.")
    judge = _Judge((utility, estimator, simulator, prior), cost, {**options, "seed": seed})
    if candidates is None:
        recommended = search(judge.pair, axes, budget=budget, seed=seed).design
        points = torch.tensor(list(judge.known), dtype=torch.float64)
        costs = judge.costs(points)
        first = [list(judge.known).index(tuple(recommended.tolist()))]
    else:
        points, first = as_candidates(candidates, axes), []
        costs = judge.costs(points)
        judge.all(points, workers)
    seen = [judge(design) for design in points]
    gains = tuple(None if isinstance(one, str) else one for one in seen)
    excluded = {k: one for k, one in enumerate(seen) if isinstance(one, str)}
    score = _column([-math.inf if g is None else g.value for g in gains]) / costs
    again = _Judge(judge.ask, cost, {**options, "seed": derived_seed(seed, 1)}) if confirm else judge
    for best in [*first, *score.argsort(descending=True, stable=True).tolist()]:
        if best in excluded:
            continue
        gain = again(points[best])
        if isinstance(gain, Gain):
            gains = tuple(None if k in excluded else one for k, one in enumerate(gains))
            said = f"{len(excluded)} of {len(points)} designs are excluded, the first because: "
            flags = (said + excluded[min(excluded)], *gain.flags) if excluded else gain.flags
            return Choice(points[best], gain, axes, points, gains, costs, excluded, seed, flags)
        excluded[best] = f"chosen, but not confirmed: {gain}"
    raise InputError(f"all {len(points)} designs are excluded, the first because: {excluded[min(excluded)]}")


def as_candidates(candidates: Any, axes: tuple[Parameter, ...], what: str = "candidates") -> Tensor:
    """Designs as they were given, as (C, K), float64."""
    rows = to_column("design", candidates).to(torch.float64)
    rows = rows[:, None] if rows.ndim == 1 and len(axes) == 1 else rows
    if rows.ndim != 2 or rows.shape[1] != len(axes) or not len(rows):
        raise InputError(f"{what} have shape {tuple(rows.shape)}, expected (C, {len(axes)}) for {names(axes)}.")
    return rows


@dataclass(frozen=True)
class _Judge:
    """Utilities of designs, each estimated once; `ask` is utility, estimator, simulator and prior."""

    ask: tuple[Utility, Any, Simulator, Distribution]
    cost: Cost | None
    options: dict[str, Any]
    known: dict[tuple[float, ...], Gain | str] = field(default_factory=dict)
    looks: Counter[tuple[float, ...]] = field(default_factory=Counter)

    def costs(self, designs: Tensor) -> Tensor:
        """Of designs (C, K), as (C,)."""
        return torch.tensor([price(self.cost, design) for design in designs], dtype=torch.float64)

    def __call__(self, design: Tensor) -> Gain | str:
        """The utility at a design (K,), or why there is none."""
        key = tuple(design.tolist())
        if key not in self.known:
            self.known[key] = _utility(*self.ask, design, self.options)
        return self.known[key]

    def pair(self, design: Tensor) -> tuple[float, float]:
        """Utility per cost at a design (K,), and its error; asked again, with other random numbers."""
        cost, key = price(self.cost, design), tuple(design.tolist())
        self.looks[key] += 1
        anew = {**self.options, "seed": derived_seed(self.options["seed"], 2, self.looks[key])}
        found = self(design) if self.looks[key] == 1 else _utility(*self.ask, design, anew)
        if isinstance(found, str):
            raise InputError(found)
        return found.value / cost, found.error / cost

    def all(self, designs: Tensor, workers: int) -> None:
        """Judge many designs (C, K), on several processes if asked."""
        if workers == 1:
            return
        from loky import get_reusable_executor

        pool = get_reusable_executor(max_workers=workers)
        found = pool.map(_utility, *([one] * len(designs) for one in self.ask), designs, [self.options] * len(designs))
        self.known.update(zip(map(tuple, designs.tolist()), found, strict=True))


def _column(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def price(cost: Cost | None, design: Tensor) -> float:
    """What a design (K,) costs, 1 by default.

    Raises:
        InputError: unless it is positive.
    """
    value = 1.0 if cost is None else float(cost(design))
    if not 0 < value < math.inf:
        raise InputError(f"cost({design.tolist()}) = {value}: expected a positive number.")
    return value


def _utility(
    utility: Utility, estimator: Any, simulator: Simulator, prior: Distribution, design: Tensor, options: dict[str, Any]
) -> Gain | str:
    try:
        with seeded(options["seed"]), one_thread():
            found = utility(estimator, simulator, prior, design, **options)
        if not isinstance(found, Gain):
            value, spread = found if isinstance(found, tuple) else (found, 0.0)
            found = Gain(float(value), float(spread), NONE, getattr(utility, "__name__", "utility"))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if not (math.isfinite(found.value) and math.isfinite(found.error)):
        return f"EIG bound or utility is {found.value} +- {found.error}"
    return found
