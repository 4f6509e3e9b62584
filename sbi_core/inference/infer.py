"""From a log likelihood and a prior to a posterior."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.columns import to_column
from sbi_core.errors import InputError
from sbi_core.inference.grid import COARSE, GridPosterior, grid_posterior
from sbi_core.observation import check_constant, pad_events
from sbi_core.parameters import Parameter, match
from sbi_core.priors import check_prior

_AT_ONCE = 200_000
"""Pairs of theta and x evaluated together."""


def infer(
    estimator: Any,
    prior: Distribution,
    x_obs: Any,
    *,
    design: Any = None,
    n_events: Any = None,
    iid: bool = False,
    batch: bool = False,
) -> GridPosterior:
    """Posterior of theta given an observation: prior times exp(log likelihood), exactly normalised on a grid.

    Args:
        estimator: anything with `log_likelihood` and `observe`: a trained estimator, or a simulator that knows its
            exact likelihood.
        prior: event shape (D,), D at most 2.
        x_obs: one observation, event-shaped; with `iid` several independent ones at the same theta, (n, *event); with
            `batch` one posterior per row, (B, *event); with both (B, n, *event).
        design: the design of the observation, (K,), or one per row of x_obs: (n, K), (B, K) or (B, n, K); with both
            `iid` and `batch` also one per problem, (B, K).
        n_events: how many events of x_obs (n_max, ...) count, or one number for each run; not needed if x_obs is the
            events alone, (n, ...) with n below n_max.
        iid: sum the log likelihood (in float64) over a leading axis.
        batch: treat a leading axis as separate problems.

    Returns:
        A distribution with event shape (D,) and batch shape (B,) or (); of an ensemble also the posterior of each
        member, as `members`, and how far they lie apart among the `verdicts`.

    Raises:
        InputError: for an x_obs of another shape, not finite, or other than x in training where that was constant; a
            prior of another length; more than two parameters.
    """
    axes: tuple[Parameter, ...] = getattr(estimator, "axes", None) or getattr(estimator, "parameters")  # noqa: B009
    check_prior(prior, axes)
    if named := getattr(prior, "parameters", None):
        order = match(axes, named, "the prior")
        if order != list(range(len(order))):
            raise InputError(
                f"the prior's parameters {[p.name for p in named]} are in another order than {[p.name for p in axes]}."
            )
    if len(axes) not in COARSE:
        raise InputError(f"theta has {len(axes)} parameters; the grid posterior serves at most {max(COARSE)}.")
    if whole := [axis.name for axis in axes if axis.integer]:
        raise InputError(f"parameters {whole} take whole numbers only; the grid posterior serves real ones.")
    shape = tuple(estimator.x_shape) if estimator.x_shape is not None else None
    x, count = _observation(x_obs, shape, estimator, iid, batch, n_events)
    settings = None if design is None else _design(design, estimator, tuple(x.shape[: iid + batch]), iid, batch)
    if getattr(estimator, "trained", True) is not True and not bool(estimator.trained):
        raise InputError(
            f"{type(estimator).__name__} is not trained; give the estimator of a Fit: infer(run.estimator, ...)"
        )
    rows = len(x) if batch else 1
    if not batch:
        x, count = x[None], None if count is None else count[None]
    function = _log_likelihood(estimator, x, settings, iid, rows, count)
    edges, density, flags = grid_posterior(axes, prior, function, rows)
    if not torch.isfinite(density.flatten(1).max(1).values).all():
        raise InputError("the likelihood of x_obs is zero, or not a number, everywhere in the prior.")
    flags = [*flags, *filter(None, [getattr(estimator, "caveat", "")])]
    if not batch:
        edges, density = [edge[0] for edge in edges], density[0]
    posterior = GridPosterior(axes, edges, density, verdicts={}, flags=flags)
    posterior.members = tuple(
        infer(member, prior, x_obs, design=design, n_events=n_events, iid=iid, batch=batch)
        for member in getattr(estimator, "members", ())
    )
    posterior.verdicts = {
        "normalisation": "exact on the grid",
        "resolution": _resolution(posterior),
        "spread of trainings": _spread(posterior),
        "coverage": "unchecked",
        "x_obs inside the simulated range": "unchecked",
    }
    return posterior


def _log_likelihood(
    estimator: Any, x: Tensor, design: Tensor | None, iid: bool, rows: int, n_events: Tensor | None
) -> Any:
    """theta (rows, G, D) -> nats (rows, G), summed over the iid axis; equal observations are evaluated once."""
    counts = None
    if iid and rows == 1 and n_events is None and (design is None or design.ndim == 1):
        unique, counts = torch.unique(x[0], dim=0, return_counts=True)
        x = unique[None]
    x = x[:, None] if iid else x[:, None, None]  # (rows, 1, n or 1, *event)
    options = {} if n_events is None else {"n_events": n_events[:, None] if iid else n_events[:, None, None]}
    with torch.no_grad():
        look = estimator.observe(x, design, **options)
    weight = torch.ones(x.shape[2]).double() if counts is None else counts.double()

    def log_likelihood(theta: Tensor) -> Tensor:
        step = max(1, _AT_ONCE // (rows * x.shape[2]))
        with torch.no_grad():
            each = [look(part[:, :, None]).double() @ weight for part in theta.split(step, 1)]
        return torch.cat(each, 1)

    return log_likelihood


def _observation(
    x_obs: Any, shape: tuple[int, ...] | None, estimator: Any, iid: bool, batch: bool, n_events: Any
) -> tuple[Tensor, Tensor | None]:
    """x (*, event) and, of runs of events, their numbers (*)."""
    x, count = to_column("x_obs", x_obs), None
    extra = int(iid) + int(batch)
    if getattr(estimator, "needs_n_events", False):
        shape = shape or (estimator.n_max, *x.shape[extra + 1 :])
        x, count = pad_events(x, shape, n_events, leading=extra)
    elif n_events is not None:
        raise InputError(f"n_events is given, and {type(estimator).__name__} reads x without it. Leave it out.")
    event = tuple(x.shape[extra:]) if shape is None else shape
    if event == (1,) and x.ndim == extra:
        x = x[..., None]  # numbers, where one number is an observation
    if x.ndim < extra + len(event) or x.shape[x.ndim - len(event) :] != event or x.ndim != extra + len(event):
        leading = ("B, " if batch else "") + ("n, " if iid else "")
        wanted = f"({leading}{', '.join(map(str, event))}{',' if len(event) == 1 and not leading else ''})"
        cure = ""
        if not extra and (x.shape[1:] == event if x.ndim > len(event) else x.ndim == 1 and event == (1,)):
            cure = " Several rows need iid=True (one theta for all) or batch=True (one posterior each)."
        raise InputError(f"x_obs has shape {tuple(x.shape)}, expected {wanted}.{cure}")
    if not torch.isfinite(x).all():
        first = (~torch.isfinite(x)).nonzero()[0].tolist()
        raise InputError(f"x_obs is NaN or infinite in {int((~torch.isfinite(x)).sum())} places, first at {first}.")
    if x.numel() == 0:
        raise InputError(f"x_obs has shape {tuple(x.shape)}: no observation at all.")
    labels = getattr(estimator, "categories", None)
    if labels is not None and bool(((x != x.round()) | (x < 0) | (x >= labels)).any()):
        raise InputError(f"x_obs holds values that are no label from 0 to {labels - 1}: {x.flatten()[:5].tolist()} ...")
    if (constants := getattr(estimator, "constants", None)) is not None:
        places = torch.arange(x.shape[extra]).reshape(-1, *[1] * (len(event) - 1))
        check_constant(x, constants, None if count is None else places < count.reshape(*count.shape, *[1] * len(event)))
    return x, count


def _design(design: Any, estimator: Any, leading: tuple[int, ...], iid: bool, batch: bool) -> Tensor:
    """One design for all observations, (K,), or one for each, (rows, 1, n or 1, K)."""
    axes: Sequence[Parameter] = estimator.designs
    value = to_column("design", design)
    if not axes or value.shape[-1:] != (len(axes),):
        raise InputError(
            f"design has shape {tuple(value.shape)}, expected (*, {len(axes)}) for {[d.name for d in axes]}."
        )
    if value.ndim == 1:
        return value
    if iid and batch and value.shape[:-1] == leading[:1]:
        value = value[:, None]
    elif value.shape[:-1] != leading:
        rows = f" or ({', '.join(map(str, (*leading, len(axes))))})" if leading else ""
        raise InputError(f"design has shape {tuple(value.shape)}, expected ({len(axes)},){rows}.")
    elif not (iid and batch):
        value = value[None] if iid else value[:, None]
    return value[:, None]


def _spread(posterior: GridPosterior) -> str:
    """How far the means of an ensemble's members lie apart, at worst."""
    if not posterior.members:
        return "unchecked"
    apart = torch.stack([member.mean for member in posterior.members]).std(0) / posterior.stddev
    return f"{float(apart.max()):.2g} posterior sd between the means of {len(posterior.members)} trainings"


def _resolution(posterior: GridPosterior) -> str:
    """How many cells one standard deviation spans, at worst."""
    centres, _ = posterior.grid()
    cells = [posterior.stddev[..., k] / centre.diff(dim=-1)[..., 0] for k, centre in enumerate(centres)]
    least = float(torch.stack(cells).min())
    return f"{least:.0f} cells per standard deviation" if least >= 5 else f"too coarse: {least:.1f} cells per sd"
