"""Monte Carlo events with weights at benchmark parameter points: a finite library as a simulator with gold."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.columns import to_column
from sbi_core.errors import InputError, MissingGold, SbiWarning
from sbi_core.parameters import Parameter, names
from sbi_core.seeding import seeded
from sbi_core.simulations import Simulations
from sbi_core.simulator import Simulator
from sbi_core.simulators.morphing import Monomials, Morphing
from sbi_core.simulators.negative_weights import Cells, Negatives, find_negatives, merge_cells

_MISFIT = 1e-4
"""Share of the weights that a polynomial may leave before it is called wrong, where there are benchmarks to tell."""

_BLURRED = 0.01
"""Share of the events that large cells may hold before it is said."""

_DRAWS = 1000


class WeightedEvents(Simulator):
    """Events x_i with weights w_i(theta) that are polynomials in theta, known at benchmarks theta_b.

    w_i(theta) = sum_c m_c(theta) W_ic (see `Morphing`), and the sum over i is the cross-section sigma(theta). An event
    of this simulator is event i of the library with probability w_i(theta) / sigma(theta); z holds W_i, so that

        log p(x, z | theta) = log w_i(theta) - log sigma(theta)

    gives joint ratios and joint scores at any theta, as in arXiv:1805.00020. Draws are exact: cumulative sums of w_i
    are polynomials too, so that a binary search costs log2(N) of them.

    N events are all there is. Drawn again and again they are not independent: `effective_events` says how many a theta
    has, and `simulate` warns where it is asked for more. `split` parts a library, so that no event trains an estimator
    and tests it. sigma(theta) has a relative Monte Carlo error of 1 / sqrt(effective_events).

    Negative weights count in cross-sections, but cannot be drawn. `negative="error"` refuses them; `negative="cells"`
    merges each with its neighbours in x (see `merge_cells`), thousands a second, which blurs x by the cells' size.
    Whether w_i(theta) is negative is looked up on a lattice of the parameters' ranges, with all corners, and at 256
    more points; so are weights that are positive at all benchmarks and become negative between or beyond them.

    Args:
        x: observables (N, ...), finite.
        weights: (N, B), such that sums over N are the cross-sections at the benchmarks, in any unit.
        benchmarks: (B, D), B at least the number of coefficients.
        parameters: the D axes of theta, with finite ranges.
        degree: of the polynomial, 2 by default; as of `Monomials`.
        sampling_weights: (N,), multiply all weights of an event.
        negative: "error" or "cells".
        prior: any distribution with event shape (D,); uniform on the parameters' ranges by default.

    Attributes:
        coefficients: W (N, C), as used.
        morphing: how they came about; `morphing.condition` is the condition number of the benchmark matrix.
        cells: what was merged; `None` if nothing was.
        flags: what a careful reader should know.

    Raises:
        InputError: for shapes that do not fit, benchmarks that do not determine the coefficients, and negative weights.

    Example:
        >>> x, share = torch.tensor([[0.0], [1.0]]), Parameter("share", 0, 1)
        >>> coin = WeightedEvents(x, [[1.0, 0.0], [0.0, 1.0]], [[0.0], [1.0]], [share], degree=1)
        >>> coin.rate(torch.tensor([0.3])), coin.effective_events(torch.tensor([[0.5], [1.0]]))
        (tensor(1.0000, dtype=torch.float64), tensor([2.0000, 1.0000], dtype=torch.float64))
    """

    def __init__(
        self,
        x: Any,
        weights: Any,
        benchmarks: Any,
        parameters: Sequence[Parameter],
        *,
        degree: Any = 2,
        sampling_weights: Any = None,
        negative: str = "error",
        prior: Distribution | None = None,
    ) -> None:
        if negative not in ("error", "cells"):
            raise InputError(f"negative = {negative!r}, expected 'error' or 'cells'.")
        self.parameters = tuple(parameters)
        self.negative = negative
        self._prior = prior
        self._degree = degree
        self.morphing = Morphing(Monomials(self.parameters, degree), benchmarks)
        self.x, self._weights = _library(x, weights, sampling_weights, len(self.morphing.benchmarks))
        self.x_shape = tuple(self.x.shape[1:])
        self.coefficients = self.morphing.coefficients(self._weights)
        self.cells: Cells | None = None
        self._squares = self.coefficients.T @ self.coefficients
        points = self.morphing.monomials.points()
        table = self.morphing.monomials(points)
        self._make_positive(table, points)
        self._total = self.coefficients.sum(0)
        self._unit = (table @ self._total).mean() / len(self)
        self._running = self.coefficients.cumsum(0)
        self.flags = (*self.morphing.flags, *self._flags())
        for flag in self.flags:
            warnings.warn(flag, SbiWarning, stacklevel=2)

    def __len__(self) -> int:
        return len(self.x)

    @property
    def prior(self) -> Distribution:
        """Density of theta, event shape (D,)."""
        return self._prior if self._prior is not None else super().prior

    @property
    def settings(self) -> dict[str, Any]:
        """What fixes the rows: the library and its coefficients, as hashes."""
        kept = super().settings
        return {key: kept[key] for key in ("x", "coefficients", "negative")}

    def sample(self, theta: Tensor, design: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw x (M, ...) and z (M, C), coefficients in units of the mean weight, at theta (M, D)."""
        self._check_inside(theta)
        monomials = self.morphing.monomials(theta)
        whole = monomials @ self._total
        if not bool((whole > 0).all()):
            raise InputError(f"theta: at {theta[~(whole > 0)][0].tolist()} all weights are zero, and nothing happens.")
        target = torch.rand(len(theta), generator=generator, dtype=torch.float64) * whole
        low, high = torch.zeros(len(theta)).long(), torch.full((len(theta),), len(self) - 1)
        for _ in range(max(1, math.ceil(math.log2(len(self))))):
            middle = (low + high) // 2
            beyond = (monomials * self._running[middle]).sum(-1) <= target
            low, high = torch.where(beyond, middle + 1, low).minimum(high), torch.where(beyond, high, middle)
        return self.x[low], self.coefficients[low] / self._unit

    def log_joint(self, theta: Tensor, x: Tensor, z: Tensor | None, design: Tensor | None) -> Tensor:
        """log w(theta) - log sigma(theta) up to a constant, theta (M, D), z (M, C), as (M,); x is not looked at."""
        if z is None:
            raise MissingGold(f"simulator '{self.name}': the simulations were stored without z.")
        monomials = self.morphing.monomials(theta)
        weight = (monomials * z).sum(-1)
        log_weight = torch.where(weight > 0, torch.where(weight > 0, weight, 1.0).log(), -torch.inf)
        return log_weight - (monomials @ (self._total / self._unit)).log()

    def rate(self, theta: Tensor, design: Tensor | None = None) -> Tensor:
        """Cross-section sigma (*) at theta (*, D), in the unit of the weights."""
        return self.morphing.monomials(theta) @ self._total

    def rate_score(self, theta: Tensor) -> Tensor:
        """grad_theta log sigma (*, D) at theta (*, D): what a number of events says about theta."""
        leaf = theta.detach().to(torch.float64).clone().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(self.rate(leaf).log().sum(), leaf)[0]

    def effective_events(self, theta: Tensor) -> Tensor:
        """(sum_i w_i)^2 / sum_i w_i^2 (*) at theta (*, D): equal weights would be worth as much (Kish).

        The w_i are those given: cells keep their sum, and make it no more certain.
        """
        monomials = self.morphing.monomials(theta)
        return (monomials @ self._total) ** 2 / ((monomials @ self._squares) * monomials).sum(-1)

    def independent_rows(self, proposal: Distribution | Tensor | None = None) -> float:
        """Rows that may be drawn before the library repeats itself: `effective_events` of a whole campaign.

        Without cells, one over the chance that two rows are one event.

        Args:
            proposal: density of theta, event shape (D,), or thetas (R, D) or (D,); the prior by default.
        """
        proposal = self.prior if proposal is None else proposal
        if isinstance(proposal, Distribution):
            with seeded(0):
                proposal = proposal.sample(torch.Size([_DRAWS]))
        monomials = self.morphing.monomials(proposal.reshape(-1, len(self.parameters)))
        mean = (monomials / (monomials @ self._total)[:, None]).mean(0)
        return float(1 / (mean @ self._squares @ mean))

    def check_rows(self, n: int, proposal: Distribution | Tensor) -> None:
        """Warn if n rows at the thetas of a proposal, one (D,), one a row (n, D) or a density, repeat the library."""
        few = self.independent_rows(proposal)
        if n > few:
            warnings.warn(
                f"{n} rows are drawn from a library that is worth {int(few)} independent ones: rows repeat, "
                "and more of them add little. Held-out rows hold events that were trained on; test on a split's part.",
                SbiWarning,
                stacklevel=3,
            )

    def split(self, fraction: float, *, seed: int) -> "tuple[WeightedEvents, WeightedEvents]":
        """Part the library at random: the second part has round(fraction * N) events, none of them in the first.

        Weights grow so that each part has cross-sections, equal within their Monte Carlo errors. Cells are made in each
        part anew. One part is for simulating and fitting, the other for checks, toys and anything that must be fair:
        with one library, the same event is among the rows that train and among those held out.
        """
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        cut = len(self) - round(fraction * len(self)) if 0 < fraction < 1 else 0
        if not 0 < cut < len(self):
            raise InputError(f"fraction = {fraction} of {len(self)} events, expected one that leaves both parts some.")
        parts = (order[:cut].sort().values, order[cut:].sort().values)
        first, second = (
            WeightedEvents(
                self.x[part],
                self._weights[part] * (len(self) / len(part)),
                self.morphing.benchmarks,
                self.parameters,
                degree=self._degree,
                negative=self.negative,
                prior=self._prior,
            )
            for part in parts
        )
        return first, second

    def draw(self, axes: Any, simulations: Simulations) -> None:
        """Draw the first number of x of N rows, a third lowest and a third highest in a parameter, and the library."""
        order, x = simulations.theta[:, 0].argsort(), simulations.x.flatten(1)[:, 0]
        low, high = x.double().quantile(torch.tensor([0.002, 0.998], dtype=torch.float64)).tolist()
        edges = torch.linspace(low, high, 31, dtype=torch.float64)
        third = max(1, len(order) // 3)
        for part, colour in ((order[:third], "#0072B2"), (order[-third:], "#D55E00")):
            monomials = self.morphing.monomials(simulations.theta[part])
            weight = self.coefficients @ (monomials / (monomials @ self._total)[:, None]).mean(0)
            label = f"{self.parameters[0].label} about {float(simulations.theta[part, 0].mean()):.2g}"
            axes.hist(x[part].clamp(edges[0], edges[-1]).numpy(), edges.numpy(), density=True, color=colour, alpha=0.3)
            every = self.x.flatten(1)[:, 0].numpy()
            axes.hist(
                every, edges.numpy(), weights=weight.numpy(), density=True, histtype="step", color=colour, label=label
            )
        axes.set(xlabel="first number of x", ylabel="density")
        axes.legend()

    def _make_positive(self, table: Tensor, points: Tensor) -> None:
        found = find_negatives(self.coefficients, self._weights, table, points)
        if not bool(found.events.any()):
            return
        if self.negative == "error":
            raise InputError(self._refusal(found))
        self.coefficients, self.cells = merge_cells(self.coefficients, self.x, table, found.events)

    def _refusal(self, found: Negatives) -> str:
        """Say how much is negative, where, and what to do."""
        at = ", ".join(f"{name} = {value:.3g}" for name, value in zip(names(self.parameters), found.at, strict=True))
        many = f"{int(found.events.sum())} of {len(self)} events ({float(found.events.double().mean()):.2%})"
        worth = f"{found.share:.2%} of the summed |weights| at {at}"
        cure = 'Give negative="cells", which merges them with their neighbours in x'
        if bool(found.given.any()):
            return (
                f"weights: {many} have negative ones, worth up to {worth}, and cannot be drawn. {cure}, or events of "
                "positive weight."
            )
        return (
            f"weights: {many} have positive ones at the benchmarks, but negative ones elsewhere in the parameters' "
            f"ranges, worth up to {worth}: {self._polynomial} does not describe them there. Narrow the ranges, add "
            f"benchmarks or raise the degree. {cure}."
        )

    def _flags(self) -> tuple[str, ...]:
        flags = []
        rest = self.morphing.misfit(self._weights, self.morphing.coefficients(self._weights))
        if rest > _MISFIT:
            flags.append(f"weights: {self._polynomial} leaves {rest:.2%} of them unexplained. Raise the degree.")
        if self.cells is not None and self.cells.wide > _BLURRED:
            flags.append(
                f"negative weights: {self.cells}; {self.cells.wide:.1%} of the events are in cells of more than half "
                "of one, which blurs x. Generate more events."
            )
        return tuple(flags)

    @property
    def _polynomial(self) -> str:
        terms = self.morphing.monomials.names
        return f"a polynomial in {', '.join(terms[:6])}{', ...' if len(terms) > 6 else ''}"

    def _check_inside(self, theta: Tensor) -> None:
        for axis, value in zip(self.parameters, theta.unbind(-1), strict=True):
            if not bool(((value >= axis.low) & (value <= axis.high)).all()):
                raise InputError(
                    f"theta: {axis.name} from {float(value.min()):.4g} to {float(value.max()):.4g}, but weights are "
                    f"checked from {axis.low:.4g} to {axis.high:.4g} only. Widen the parameter's range."
                )


def _library(x: Any, weights: Any, sampling: Any, count: int) -> tuple[Tensor, Tensor]:
    """Check and convert x (N, ...) and weights (N, B), with the sampling weights (N,) in them."""
    x, weights = to_column("x", x), to_column("weights", weights).to(torch.float64)
    if x.ndim < 2 or len(x) < 1 or weights.shape != (len(x), count):
        raise InputError(
            f"x has shape {tuple(x.shape)} and weights {tuple(weights.shape)}: expected (N, ...) and (N, {count}), an "
            "event a row and a weight for each benchmark. One number an event needs x[:, None]."
        )
    if sampling is not None:
        each = to_column("sampling_weights", sampling).to(torch.float64)
        if each.shape != (len(x),):
            raise InputError(f"sampling_weights have shape {tuple(each.shape)}, expected ({len(x)},), one an event.")
        weights = weights * each[:, None]
    for name, column in (("x", x), ("weights", weights)):
        bad = ~column.flatten(1).isfinite().all(1)
        if bool(bad.any()):
            raise InputError(f"{name}: {int(bad.sum())} events are not finite, the first is {int(bad.nonzero()[0])}.")
    if not bool(weights.any()):
        raise InputError(f"weights: those of all {len(x)} events are zero, expected some that are not.")
    return x, weights
