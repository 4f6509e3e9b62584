"""Trying a Pyro program before it is used, and mining one that takes one row at a time."""

import time

import pyro
import torch
from pyro.distributions import Normal
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.simulators.pyro_checks import Observed, Run, Trial, check, said
from sbi_core.simulators.pyro_trace import Draws, Layout, find_layout, find_observed, log_density, trace, unvalidated

ROWS = 50, 64
"""Rows of the two runs that tell what in a vectorised program are rows; the second is the trial."""

SINGLE = 8
"""Rows of the trial of a program that takes one at a time."""


def try_rows(
    run: Run, prior: Distribution, parameters: list[str], design: Tensor | None, near: Tensor | None, observed: Observed
) -> Layout:
    """Try a vectorised program at draws of the prior; return where its sites are stored.

    Args:
        run: (theta (M, D), design (M, K) or `None`, values) -> draws.
        prior: of theta.
        parameters: names of theta's axes.
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
            runs.append(run(theta[:rows], None if design is None else design[:rows], {}))
    layout = find_layout(*runs, ROWS, observed)
    with said("when it was run again with the same draws"):
        check(Trial(run, theta, design, theta.roll(1, 0), runs[1], layout.axes, observed), parameters, near)
    return layout


def x_of_row(draws: Draws, observed: Observed) -> Tensor:
    """x (...) of one run: the value of the observed site, or those of several side by side."""
    find_observed(draws, observed)
    values = [draws[name].value.detach() for name in observed]
    values = [value if value.is_floating_point() else value.to(torch.float64) for value in values]
    return torch.atleast_1d(values[0]) if len(values) == 1 else torch.cat([value.flatten() for value in values])


def mine_row(
    run: Run, theta: Tensor, design: Tensor | None, others: Tensor, observed: Observed
) -> tuple[Tensor, Tensor, Tensor]:
    """Run a program once at theta (D,), and replay its draws at C others (C, D).

    Returns:
        x (...), the joint score (D,) and the joint log ratios log p(x, z | theta) - log p(x, z | other) (C,).
    """
    leaf = theta.clone().requires_grad_()
    draws = run(leaf, design, {})
    trial = Trial(run, theta, design, theta, draws, None, observed)
    own = torch.stack(list(trial.log_p(draws).values())).sum(0)
    score = torch.autograd.grad(own.sum(), leaf)[0] if own.requires_grad else torch.zeros_like(leaf)
    with torch.no_grad(), unvalidated():
        far = [trial.total(other) for other in others]
    return x_of_row(draws, observed), score, own.detach() - torch.cat([theta.new_empty(0), *far])


def try_single(
    run: Run, prior: Distribution, parameters: list[str], design: Tensor | None, contrasts: int, observed: Observed
) -> str:
    """Try a program at draws of the prior; return how slow it is, in one sentence.

    Args:
        run: (theta (D,), design (K,) or `None`, values) -> draws.
        prior: of theta.
        parameters: names of theta's axes.
        design: (M, K) or `None`.
        contrasts: thetas beside its own at which each row's ratio is kept.
        observed: names of the observed sites.

    Raises:
        SimulatorError: for a program that is refused.
    """
    theta = prior.sample(torch.Size([SINGLE + contrasts])).double()
    sites, seconds = [], []
    for row in range(SINGLE):
        setting = None if design is None else design[row % len(design)]
        with said(f"for theta ({theta.shape[1]},)"), torch.no_grad():
            draws = run(theta[row], setting, {})
        find_observed(draws, observed)
        with said("when it was run again with the same draws"):
            check(Trial(run, theta[row], setting, theta[row - 1], draws, None, observed), parameters)
            started = time.process_time()
            mine_row(run, theta[row], setting, theta[row + 1 : row + 1 + contrasts], observed)
            seconds.append(time.process_time() - started)
        sites.append(len(draws))
    each, many = sorted(seconds)[SINGLE // 2], sorted(sites)[SINGLE // 2]
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

    total = torch.stack([log_density(draw, 0) for draw in trace(model, (leaf,)).values()]).sum()
    torch.autograd.grad(total, leaf)
    return (time.process_time() - started) / len(leaf)
