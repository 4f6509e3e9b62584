"""Is the gold of a Pyro program what it seems? Replays of a trial run that must agree."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from sbi_core.errors import SbiError, SimulatorError
from sbi_core.parameters import Parameter
from sbi_core.seeding import seeded
from sbi_core.simulators.pyro_trace import (
    DENSITIES,
    SUPPORTS,
    Draw,
    Draws,
    log_density,
    unvalidated,
)

Run = Callable[[Tensor, Tensor | None, Mapping[str, Tensor], int], Draws]
"""(theta, design, values, depth) -> draws."""

Observed = tuple[str, ...]

HALVINGS = 40
"""Of the way between two thetas, to find where log p ends."""

STEP = {torch.float64: 1e-5, torch.float32: 1e-2}
"""Of the way between two thetas, for differences."""

SLOPES = {torch.float64: 1e-6, torch.float32: 1e-4}
"""Difference of two slopes, for each nat of log p, that rounding may make."""

FLOOR = {torch.float64: -700.0, torch.float32: -80.0}
"""log p above which an end is that of the support, and not of the numbers' range."""

AGREE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Relative difference of two ways to compute log p that rounding may make."""


_MOVES = (
    "site '{}': its support moves with {}, so the same draw may be possible here and impossible there. Draw on a "
    "fixed support, such as Uniform(0, 1), and let what is drawn be scaled or shifted."
)


@dataclass(frozen=True)
class Trial:
    """A run whose gold is to be believed.

    Attributes:
        run: see `Run`.
        theta: (M, D), or (D,) of a program that takes one row at a time.
        design: (M, K), (K,) or `None`.
        other: another theta for each row, like `theta`.
        draws: the run, masked draws as they were.
        values: what is stored of it, by site.
        axes: where the rows stand in each site; `None` for one row.
        observed: names of the observed sites.
    """

    run: Run
    theta: Tensor
    design: Tensor | None
    other: Tensor
    draws: Draws
    values: Mapping[str, Tensor]
    axes: Mapping[str, int] | None
    observed: Observed

    def replay(
        self,
        theta: Tensor,
        design: Tensor | None = None,
        values: Mapping[str, Tensor] | None = None,
        depth: int = DENSITIES,
    ) -> Draws:
        """The same draws at theta (M, D) or (D,), and at the trial's design if none is given."""
        design, values = self.design if design is None else design, self.values if values is None else values
        draws = self.run(theta, design, values, depth)
        names, again = ([name for name, d in some.items() if not d.computed] for some in (self.draws, draws))
        if names != again:
            name = next(name for name in [*names, *again] if (name in names) != (name in again))
            raise SimulatorError(
                f"site '{name}' is there at one theta and not at another with the same draws, so log p has no ratio. "
                "Let theta set distributions, not which sites there are."
            )
        return draws

    def log_p(self, draws: Draws) -> dict[str, Tensor]:
        """log p of each drawn site, (M,), or (1,) for one row."""
        axes = {} if self.axes is None else self.axes
        return {name: log_density(d, axes.get(name)) for name, d in draws.items() if not d.computed}

    def total(self, theta: Tensor) -> Tensor:
        """log p of all draws at theta (M, D) or (D,): (M,) or (1,)."""
        return torch.stack(list(self.log_p(self.replay(theta)).values())).sum(0)

    def computed(self, draws: Draws) -> dict[str, Tensor]:
        """Observed values that are computed, by site."""
        return {name: draws[name].value.detach() for name in self.observed if draws[name].computed}


@contextmanager
def said(where: str, rows: str = "theta (M, D) with any number of rows M, or say vectorized=False") -> Iterator[None]:
    """Whatever a program raises becomes one sentence, with what it should take."""
    try:
        yield
    except SbiError:
        raise
    except Exception as error:
        line = (str(error).strip().splitlines() or ["it says no more"])[0].rstrip(".:")
        if "inplace operation" in str(error):
            line, rows = "a tensor is changed in place", "a new name instead, as in n = n - k, and not n -= k"
        elif "to satisfy the constraint" in str(error):
            rows = "arguments that the distribution allows at all theta of the prior"
        raise SimulatorError(
            f"the program raised {type(error).__name__} {where}: {line}. Let it take {rows}."
        ) from error


def check(trial: Trial, parameters: Sequence[Parameter], near: Tensor | None = None) -> list[str]:
    """Check a program; return the sites whose log p knows theta in single precision only.

    Args:
        trial: a run.
        parameters: the D axes of theta.
        near: a design (M, K) near the trial's, if log p is to be differentiated by the design too.

    Raises:
        SimulatorError: in one sentence, if gold would be wrong.
    """
    with unvalidated(), torch.no_grad():
        _check_masked(trial)
        own = trial.log_p(trial.replay(trial.theta))
        _check_own(trial, own)
        _check_hidden(trial)
        _check_moves(trial, trial.replay(trial.other, depth=SUPPORTS), "theta")
        _check_support(trial, own)
        if near is not None:
            _check_moves(trial, trial.replay(trial.theta, near, depth=SUPPORTS), "the design")
        if trial.axes is not None:
            _check_rows(trial, own)
        return _check_slopes(trial, parameters, own)


def _check_own(trial: Trial, own: Mapping[str, Tensor]) -> None:
    for name, log_p in own.items():
        if bool((~log_p.isfinite()).any()):
            row = int((~log_p.isfinite()).nonzero()[0])
            raise SimulatorError(
                f"site '{name}': log p is {float(log_p[row])} at what was drawn itself, theta = "
                f"{_at(trial.theta, row)}. Keep the distribution's arguments inside their range for all theta of the "
                "prior."
            )


def _check_hidden(trial: Trial) -> None:
    """Two replays under different seeds must agree."""
    found = []
    for seed in (1, 2):
        with seeded(seed):
            draws = trial.replay(trial.theta)
        found.append(trial.log_p(draws) | trial.computed(draws))
    for name, value in found[0].items():
        if not _same(value, found[1][name], 0.0):
            raise SimulatorError(
                f"site '{name}' depends on random numbers that no pyro.sample draws, or one under poutine.block, "
                "which gold cannot hold fixed. Draw them with pyro.sample, in the open."
            )


def _check_moves(trial: Trial, draws: Draws, mover: str) -> None:
    """What may not depend on theta, or on the design: bounds of supports, masks, and values computed for x."""
    for name, draw in trial.draws.items():
        if draw.computed:
            continue
        before, after = _counts(draw), _counts(draws[name])
        if not torch.equal(before, after):
            raise SimulatorError(
                f"site '{name}': its mask moves with {mover} while all draws are held fixed, so what log p counts "
                f"does. Let masks depend on draws, not on {mover}."
            )
        ends = zip(draw.bounds, draws[name].bounds, strict=False)
        here, there = draw.inside, draws[name].inside
        assert here is not None and there is not None  # as they were asked for
        moved = [one != two if one.ndim > before.ndim else (one != two) & before for one, two in ends]
        if any(map(bool, map(torch.any, moved))) or bool((here & ~there).any()):
            raise SimulatorError(_MOVES.format(name, mover))
    after_all = trial.computed(draws)
    for name, value in trial.computed(trial.draws).items():
        if not _same(value, after_all[name], 0.0):
            raise SimulatorError(
                f"site '{name}' is computed, and moves with {mover} while all draws are held fixed: p(x | draws) is a "
                "delta. Draw x with pyro.sample, for example with the noise it is measured with."
            )


def _check_support(trial: Trial, own: Mapping[str, Tensor]) -> None:
    """Where log p of a site ends on the way to another theta, it must fade, and not break off."""
    there = trial.log_p(trial.replay(trial.other))
    for name, far in there.items():
        ended = ~far.isfinite()
        if not bool(ended.any()):
            continue
        low, high, last = torch.zeros_like(far), torch.ones_like(far), own[name]
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            share = middle.reshape(-1, 1) if trial.theta.ndim == 2 else middle
            log_p = trial.log_p(trial.replay(torch.lerp(trial.theta, trial.other, share)))[name]
            kept = log_p.isfinite()
            low, last = torch.where(kept, middle, low), torch.where(kept, log_p, last)
            high = torch.where(kept, high, middle)
        broken = ended & (last > FLOOR[_precision(trial.draws[name])])
        if bool(broken.any()):
            raise SimulatorError(_MOVES.format(name, "theta"))


def _check_masked(trial: Trial) -> None:
    """Draws that are masked must make no difference to anything else."""
    masked = [name for name, draw in trial.draws.items() if draw.counted is not None and not bool(draw.counted.all())]
    if not masked:
        return
    then = trial.run(trial.theta, trial.design, trial.values, DENSITIES)
    found, own, fixed = trial.log_p(trial.draws), trial.log_p(then), trial.computed(trial.draws)
    alike = own.keys() == found.keys() and all(_same(found[n], own[n], AGREE[_precision(then[n])]) for n in own)
    if not alike or any(not _same(value, fixed[name], 0.0) for name, value in trial.computed(then).items()):
        raise SimulatorError(
            f"masked draws of the sites {masked} are used, although log p does not count them. Keep them out: "
            "torch.where(mask, draw, 0) before anything else is made of a draw."
        )


def _check_rows(trial: Trial, own: Mapping[str, Tensor]) -> None:
    """log p of a row must be its own business: some rows in another order, and one row alone, give the same."""
    rows, axes = len(trial.theta), {} if trial.axes is None else trial.axes
    for few in (torch.arange(0, rows, 2).flip(0), torch.tensor([rows - 1])):
        values = {name: value.index_select(axes[name], few) for name, value in trial.values.items()}
        design = None if trial.design is None else trial.design[few]
        with said(f"for {len(few)} of {rows} rows, with their draws"):
            draws = trial.replay(trial.theta[few], design, values)
            log_p = trial.log_p(draws)
        before = trial.computed(trial.draws)
        alike = {
            name: _same(value[few], log_p[name], AGREE[_precision(trial.draws[name])]) for name, value in own.items()
        }
        for name, value in trial.computed(draws).items():
            alike[name] = _same(before[name].index_select(axes[name], few), value, AGREE[torch.float32])
        if not all(alike.values()):
            name = next(name for name in alike if not alike[name])
            raise SimulatorError(
                f"site '{name}': a row depends on which other rows are there. Let each depend on its own theta and "
                "draws alone (no mean, sort, cumsum or matrix product over rows); or say vectorized=False."
            )


def _check_slopes(trial: Trial, parameters: Sequence[Parameter], own: Mapping[str, Tensor]) -> list[str]:
    """The gradient must be finite, and be that of log p, at every site."""
    with torch.enable_grad():
        leaf = trial.theta.clone().requires_grad_()
        slopes = {name: _slope(value, leaf) for name, value in trial.log_p(trial.replay(leaf)).items()}
    endless = [name for name, value in slopes.items() if not bool(value.isfinite().all())]
    if endless:
        raise SimulatorError(
            f"log p is finite, but its gradient is not, at the sites {endless}. Give masked draws harmless arguments, "
            "with torch.where before the distribution is made, and keep the others away from 0/0."
        )
    kinds = {name: _precision(trial.draws[name]) for name in own}
    for axis, parameter in enumerate(parameters):
        if parameter.integer:
            continue
        way = (trial.other - trial.theta) * (torch.arange(len(parameters)) == axis)
        far = trial.log_p(trial.replay(trial.theta + way))
        ends = {kind: [_differences(trial, way, k * STEP[kind]) for k in (4, 1)] for kind in set(kinds.values())}
        for name, kind in kinds.items():
            coarse, fine = (found[name] for found in ends[kind])
            rise, least = (slopes[name] * way).sum(-1), SLOPES[kind] * (1 + own[name].abs())
            wrong = (fine - rise).abs() - 3 * (fine - coarse).abs() > 1e3 * SLOPES[kind] * fine.abs() + least
            lost = bool(((far[name] - own[name]).abs() > least).any()) and not bool(rise.any())
            if lost or float(wrong.double().mean()) > 0.1:
                raise SimulatorError(
                    f"site '{name}': log p changes with '{parameter.name}', but its gradient does not say so. Keep "
                    "theta a tensor all the way: no item, float, numpy or detach, and no round or comparison in its "
                    "place."
                )
    return [name for name, kind in kinds.items() if kind != torch.float64 and bool(slopes[name].any())]


def _differences(trial: Trial, way: Tensor, step: float) -> dict[str, Tensor]:
    """Central difference of log p of each site, (M,) or (1,), for the whole way (M, D) or (D,)."""
    ahead, behind = (trial.log_p(trial.replay(trial.theta + h * way)) for h in (step, -step))
    return {name: (ahead[name] - behind[name]) / (2 * step) for name in ahead}


def _slope(value: Tensor, leaf: Tensor) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(leaf)
    return torch.autograd.grad(value.sum(), leaf, retain_graph=True, materialize_grads=True)[0]


def _precision(draw: Draw) -> torch.dtype:
    """Type that log p of a draw is computed in."""
    double = draw.log_p is not None and draw.log_p.dtype == torch.float64
    return torch.float64 if double else torch.float32


def _counts(draw: Draw) -> Tensor:
    return torch.ones_like(draw.value, dtype=torch.bool) if draw.counted is None else draw.counted


def _same(one: Tensor, two: Tensor, tolerance: float) -> bool:
    if one.shape != two.shape:
        return False
    return torch.allclose(one.double(), two.double(), rtol=tolerance, atol=tolerance, equal_nan=True)


def _at(theta: Tensor, row: int) -> list[float]:
    return [float(f"{value:.4g}") for value in (theta if theta.ndim == 1 else theta[row]).tolist()]
