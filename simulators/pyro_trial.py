"""Trying a Pyro program before it is used, and mining one that takes one row at a time."""

import time
import warnings
from collections.abc import Sequence
from statistics import median

import pyro
import torch
from pyro.distributions import Normal
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.errors import SbiError, SbiWarning, SimulatorError, nearest
from sbi_core.parameters import Parameter
from sbi_core.simulator import Mined
from sbi_core.simulators.pyro_checks import Observed, Run, Trial, check, said
from sbi_core.simulators.pyro_layout import Layout, Site, other_sites
from sbi_core.simulators.pyro_trace import (
    DENSITIES,
    DRAWN,
    Draw,
    Draws,
    chain,
    log_density,
    trace,
    unvalidated,
    values_of,
    without_masked,
)

ROWS = 50, 64
"""Rows of the two runs that tell what in a vectorised program are rows; the second is the trial."""

SINGLE = 8
"""Rows of the trial of a program that takes one at a time."""


def try_rows(
    run: Run,
    prior: Distribution,
    parameters: Sequence[Parameter],
    design: Tensor | None,
    near: Tensor | None,
    observed: Observed,
) -> Layout:
    """Try a vectorised program at draws of the prior; return where its sites are stored.

    Args:
        run: of theta (M, D), design (M, K) or `None`.
        prior: of theta.
        parameters: the axes of theta.
        design: (M, K) or `None`.
        near: a design near it, if log p is to be differentiated by the design too.
        observed: names of the observed sites.

    Raises:
        SimulatorError: for a program that is refused.
    """
    theta = prior.sample(torch.Size([ROWS[1]])).double()
    design, near = (None if d is None else d[torch.arange(ROWS[1]) % len(d)] for d in (design, near))
    runs = []
    for rows in ROWS:
        with said(f"for theta ({rows}, {theta.shape[1]})"), torch.no_grad():
            runs.append(run(theta[:rows], None if design is None else design[:rows], {}, 0))
    layout = find_layout(runs[0], runs[1], ROWS, observed)
    columns = layout.columns(runs[1], ROWS[1])
    finite = [column.flatten(1).isfinite().all(1) for column in columns if column is not None]
    usable = torch.stack(finite).all(0).nonzero()[:, 0]
    if len(usable) < SINGLE:
        raise SimulatorError(f"x is finite in {len(usable)} of {ROWS[1]} rows. NaN marks failed rows; let fewer fail.")
    with said("when it was run again with the same draws"), torch.no_grad(), unvalidated():
        design, near, z = (None if c is None else c[usable] for c in (design, near, columns[1]))
        theta, x = theta[usable], columns[0][usable]
        drawn = {name: value.index_select(layout.axes[name], usable) for name, value in values_of(runs[1]).items()}
        draws, stored = run(theta, design, drawn, DRAWN), layout.values(x, z)
        _check_log_p(draws, layout)
        trial = Trial(run, theta, design, theta.roll(1, 0), draws, stored, layout.axes, observed)
        _warn(check(trial, parameters, near))
    return layout


def _warn(single: list[str]) -> None:
    if single:
        warnings.warn(
            f"the sites {single} have densities in single precision, so their gold has 6 digits. Leave theta in "
            "float64, and make constants and networks .double().",
            SbiWarning,
            stacklevel=2,
        )


def mine_rows(run: Run, theta: Tensor, others: Tensor | None, design: Tensor | None, observed: Observed) -> Mined:
    """Run a program row by row at theta (M, D), and replay each row's draws at others (M, C, D).

    Rows whose run raises are NaN, and its exception is kept; if all do, the last one is raised.

    Raises:
        SimulatorError: if x has other shapes in other rows, or a run has other sites at another theta.
    """
    contrasts = theta.new_empty((len(theta), 0, theta.shape[1])) if others is None else others
    rows, failures = list[tuple[Tensor, ...] | None](), dict[int, BaseException]()
    for k, at in enumerate(theta):
        try:
            rows.append(_mine_row(run, at, None if design is None else design[k], contrasts[k], observed))
        except SbiError:
            raise
        except Exception as error:
            failures[k] = error
            rows.append(None)
    like = next((row for row in rows if row is not None), None)
    if like is None:
        raise failures[len(theta) - 1]
    nothing = tuple(torch.full_like(part, torch.nan) for part in like)
    x, score, ratio = (stacked(parts) for parts in zip(*(nothing if row is None else row for row in rows), strict=True))
    return Mined(x, None, score, None if others is None else ratio, failures)


def _mine_row(
    run: Run, theta: Tensor, design: Tensor | None, others: Tensor, observed: Observed
) -> tuple[Tensor, Tensor, Tensor]:
    """x (...), the joint score (D,) and the joint log ratios (C,) of one run at theta (D,) to others (C, D)."""
    leaf = theta.clone().requires_grad_()
    draws = run(leaf, design, {}, DENSITIES)
    trial = Trial(run, theta, design, theta, draws, values_of(draws), None, observed)
    own = torch.stack(list(trial.log_p(draws).values())).sum(0)
    score = torch.autograd.grad(own.sum(), leaf)[0] if own.requires_grad else torch.zeros_like(leaf)
    with torch.no_grad(), unvalidated():
        far = [trial.total(other) for other in others]
    return x_of_row(draws, observed), score, own.detach() - torch.cat([theta.new_empty(0), *far])


def x_of_row(draws: Draws, observed: Observed) -> Tensor:
    """x (...) of one run: the value of the observed site, or those of several side by side."""
    find_observed(draws, observed)
    values = [without_masked(draws[name]).detach() for name in observed]
    values = [value if value.is_floating_point() else value.to(torch.float64) for value in values]
    return torch.atleast_1d(values[0]) if len(values) == 1 else torch.cat([value.flatten() for value in values])


def stacked(rows: Sequence[Tensor]) -> Tensor:
    """x (M, ...) of M rows; raise `SimulatorError` if their shapes differ."""
    for x in rows:
        if x.shape != rows[0].shape:
            raise SimulatorError(
                f"x has shape {tuple(rows[0].shape)} in one row and {tuple(x.shape)} in another, expected the same in "
                "all. Pad it in a pyro.deterministic, or observe a summary."
            )
    return torch.stack(list(rows))


def try_single(
    run: Run,
    prior: Distribution,
    parameters: Sequence[Parameter],
    design: Tensor | None,
    contrasts: int,
    observed: Observed,
) -> str:
    """Try a program at draws of the prior; return how slow it is, in one sentence.

    Args:
        run: of theta (D,), design (K,) or `None`.
        prior: of theta.
        parameters: the axes of theta.
        design: (M, K) or `None`.
        contrasts: thetas beside its own at which each row's ratio is kept.
        observed: names of the observed sites.

    Raises:
        SimulatorError: for a program that is refused.
    """
    theta = prior.sample(torch.Size([SINGLE + contrasts])).double()
    sites, seconds, single = list[int](), list[float](), dict[str, None]()
    failure: Exception = ValueError("x is not finite, which marks a failed row")
    for row in range(SINGLE):
        setting = None if design is None else design[row % len(design)]
        try:
            with torch.no_grad():
                draws = run(theta[row], setting, {}, 0)
                usable = bool(x_of_row(draws, observed).isfinite().all())
        except SbiError:
            raise
        except Exception as error:
            failure = error
            continue
        if not usable:
            continue
        with said("when it was run again with the same draws", "one theta (D,)"):
            values = values_of(draws)
            with torch.no_grad(), unvalidated():
                draws = run(theta[row], setting, values, DRAWN)
            trial = Trial(run, theta[row], setting, theta[row - 1], draws, values, None, observed)
            single |= dict.fromkeys(check(trial, parameters))
            started = time.process_time()
            _mine_row(run, theta[row], setting, theta[row + 1 : row + 1 + contrasts], observed)
            seconds.append(time.process_time() - started)
        sites.append(len(draws))
    _warn(list(single))
    if not sites:
        with said(f"for each of {SINGLE} theta ({theta.shape[1]},)", "one theta (D,)"):
            raise failure
    each, many = median(seconds), round(median(sites))
    together = min(_vectorized_seconds(many) for _ in range(3))
    return (
        f"runs row by row: {each * 1e3:.2g} ms a row with its gold, {each / together:.0f} times as long as a "
        f"vectorised program of as many draws ({many}), which keeps gold for any theta. Vectorise it if you can."
    )


def _vectorized_seconds(sites: int) -> float:
    """CPU seconds a row that so many normal draws and their score take, 1000 rows at once."""
    leaf, started = torch.zeros(1000, requires_grad=True), time.process_time()

    def model(theta: Tensor) -> None:
        for k in range(sites):
            pyro.sample(f"z_{k}", Normal(theta, 1.0))

    total = torch.stack([log_density(draw, 0) for draw in trace(model, (leaf,), {}, DENSITIES).values()]).sum()
    torch.autograd.grad(total, leaf)
    return (time.process_time() - started) / len(leaf)


def find_observed(draws: Draws, observed: Sequence[str]) -> None:
    """Raise `SimulatorError` unless the observed sites are there."""
    for name in observed:
        if name not in draws:
            raise SimulatorError(
                f"there is no site '{name}' to observe; {nearest(name, draws)} Draw it with pyro.sample('{name}', "
                "...), or say observed=..."
            )


def find_layout(some: Draws, more: Draws, rows: tuple[int, int], observed: Sequence[str]) -> Layout:
    """Read the layout off runs of two numbers of rows.

    Raises:
        SimulatorError: for observed sites that are missing, sites that differ between the runs, or have no row axis.
    """
    find_observed(some, observed)
    kept = [name for name, draw in some.items() if name in observed or not draw.computed]
    sites = {name: _find_rows(name, some[name], more.get(name), rows, name in observed) for name in kept}
    layout = Layout(tuple(s for s in sites.values() if s.column == "z"), tuple(sites[name] for name in observed))
    layout.check(more, rows[1])
    return layout


def _find_rows(name: str, some: Draw, more: Draw | None, rows: tuple[int, int], observed: bool) -> Site:
    if more is None:
        raise other_sites(name, None, tuple(some.value.shape), rows[1])
    shapes = tuple(some.value.shape), tuple(more.value.shape)
    axes = [k for k, (one, two) in enumerate(zip(*shapes, strict=False)) if one != two]
    where = f"site '{name}' has shape {shapes[0]} for {rows[0]} rows of theta and {shapes[1]} for {rows[1]}"
    if not axes and shapes[0] == shapes[1]:
        raise SimulatorError(
            f"{where}: all rows share one draw. Put it inside `with pyro.plate('rows', len(theta))`, or expand it by "
            "len(theta); or say vectorized=False if the program takes one row at a time."
        )
    if len(axes) != 1 or len(shapes[0]) != len(shapes[1]) or (shapes[0][axes[0]], shapes[1][axes[0]]) != rows:
        raise SimulatorError(
            f"{where}; expected one axis as long as theta. Tensors (M,) and (M, 1) together make (M, M): keep rows in "
            "one axis; or say vectorized=False if the program takes one row at a time."
        )
    (axis,) = axes
    shape = shapes[0][:axis] + shapes[0][axis + 1 :]
    kind = "computed" if some.computed else type(list(chain(some.fn))[-1]).__name__
    column = "x" if observed else "z"
    return Site(name, axis, shape, some.value.dtype, column, some.computed, kind)


def _check_log_p(draws: Draws, layout: Layout) -> None:
    for name, draw in draws.items():
        log_p = draw.log_p
        if log_p is not None and (log_p.shape != draw.fn.batch_shape or layout.axes[name] >= log_p.ndim):
            raise SimulatorError(
                f"site '{name}' has a value of shape {tuple(draw.value.shape)}, but one log p for several rows. Keep "
                "rows out of to_event, and masks in the batch shape."
            )
