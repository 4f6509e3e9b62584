"""An observation, checked and seen once by an estimator: what every method of inference reads."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.columns import to_column
from sbi_core.errors import InputError
from sbi_core.observation import check_constant, pad_events
from sbi_core.parameters import Parameter, positions

_AT_ONCE = 200_000
"""Pairs of theta and x evaluated together."""


class Observed:
    """log p(x_obs | theta) of R problems, each with observations of its own, in nats up to a term without theta.

    Args:
        estimator: anything with `observe`, trained if it can be.
        x_obs: as `infer` takes it.
        design: as `infer` takes it.
        n_events: as `infer` takes it.
        iid: sum over a leading axis of x_obs, in float64; equal observations are evaluated once.
        batch: one problem for each row of x_obs; else R = 1.
        constraints: as `infer` takes them.

    Attributes:
        x: all observations of all problems, (N, *event).
        n_events: how many of their events count, (N,), if that is not the same for all.

    Raises:
        InputError: for an observation, design or constraint that does not fit, an estimator that was not trained.
    """

    def __init__(
        self,
        estimator: Any,
        x_obs: Any,
        *,
        design: Any = None,
        n_events: Any = None,
        iid: bool = False,
        batch: bool = False,
        constraints: Mapping[Any, Distribution] | None = None,
    ) -> None:
        self.axes: tuple[Parameter, ...] = getattr(estimator, "axes", None) or estimator.parameters
        self._constraints = auxiliary(constraints, self.axes)
        shape = tuple(estimator.x_shape) if estimator.x_shape is not None else None
        x, count = in_shape(x_obs, shape, estimator, iid, batch, n_events)
        settings = None if design is None else _design(design, estimator, tuple(x.shape[: iid + batch]), iid, batch)
        if getattr(estimator, "trained", True) is not True and not bool(estimator.trained):
            raise InputError(
                f"{type(estimator).__name__} is not trained; give the estimator of a Fit: infer(run.estimator, ...)"
            )
        self.rows = len(x) if batch else 1
        self.x = x.reshape(-1, *x.shape[iid + batch :])
        self.n_events = None if count is None else count.reshape(-1)
        if not batch:
            x, count = x[None], None if count is None else count[None]
        weight = torch.ones(1, x.shape[1] if iid else 1)
        if iid and count is None and (settings is None or settings.ndim == 1):
            x, weight = _counted(x)
        x = x[:, None] if iid else x[:, None, None]  # (R, 1, n or 1, *event)
        options = {} if count is None else {"n_events": count[:, None] if iid else count[:, None, None]}
        with torch.no_grad():
            self._look = estimator.observe(x, settings, **options)
        self._flow = None if iid or not hasattr(estimator, "log_posterior") else (estimator, x, settings, options)
        self._weight = weight.double()

    @property
    def at_once(self) -> int:
        """How many thetas of each problem to evaluate together."""
        return max(1, _AT_ONCE // self.pairs)

    @property
    def pairs(self) -> int:
        """Pairs of theta and x in the evaluation of one theta of each problem."""
        return self.rows * self._weight.shape[1]

    def __call__(self, theta: Tensor) -> Tensor:
        """Theta (R, G, D) -> nats (R, G), with a gradient if theta has one."""
        each = self._look(theta[:, :, None]).double()
        value: Tensor = (each @ self._weight.to(theta.device)[..., None])[..., 0]
        for columns, measured in self._constraints:
            value = value + measured.log_prob(theta[..., columns])
        return value

    @property
    def is_direct(self) -> bool:
        """Whether the estimator is a posterior flow that answers this observation by itself."""
        return self._flow is not None

    @torch.no_grad()
    def direct(self, n: int) -> tuple[Tensor, Tensor]:
        """Draws of the estimator's own posterior q, theta (R, n, D), and log q there, nats (R, n)."""
        assert self._flow is not None
        flow, x, settings, options = self._flow
        theta: Tensor = flow.sample(x, n, settings, **options).reshape(self.rows, n, len(self.axes))
        density: Tensor = flow.log_posterior(theta[:, :, None], x, settings, **options)
        return theta, density[..., 0].double()

    @torch.no_grad()
    def log_likelihood(self, theta: Tensor, *, until: float = math.inf) -> Tensor:
        """Theta (R, G, D) -> nats (R, G), in parts, so that any G fits into memory; `InputError` after a given time."""
        found = []
        for part in theta.split(self.at_once, 1):
            if time.monotonic() > until:
                raise InputError(
                    "time_limit: it came before the grid was done. Raise it, or say method='hmc', which stops in time."
                )
            found.append(self(part))
        return torch.cat(found, 1)


def _counted(x: Tensor) -> tuple[Tensor, Tensor]:
    """Sets x (R, n, *event) as different observations, (R or 1, U, *event), and how often each came, (R, U)."""
    unique, place = torch.unique(x.flatten(0, 1), dim=0, return_inverse=True)
    if len(unique) > x.shape[1]:  # rows that share few values: there is nothing to save
        return x, torch.ones(len(x), x.shape[1])
    count = torch.zeros(len(x), len(unique)).scatter_add_(1, place.reshape(x.shape[:2]), torch.ones(x.shape[:2]))
    return unique[None], count


def auxiliary(
    constraints: Mapping[Any, Distribution] | None, axes: Sequence[Parameter]
) -> list[tuple[int | list[int], Distribution]]:
    """Which columns of theta each auxiliary measurement is about.

    Raises:
        InputError: for an unknown name, or a distribution of another event shape.
    """
    found: list[tuple[int | list[int], Distribution]] = []
    for name, measured in (constraints or {}).items():
        several = not isinstance(name, str)
        columns = positions(name if several else (name,), axes)
        event = torch.Size([len(name)]) if several else torch.Size()
        if not isinstance(measured, Distribution) or measured.event_shape != event or measured.batch_shape:
            raise InputError(
                f"constraints: {name!r} needs a torch.distributions.Distribution of event shape {tuple(event)}, got "
                f"{measured!r}."
            )
        found.append((columns if several else columns[0], measured))
    return found


def in_shape(
    x_obs: Any, shape: tuple[int, ...] | None, estimator: Any, iid: bool, batch: bool, n_events: Any
) -> tuple[Tensor, Tensor | None]:
    """x (*, event) and, of runs of events, their numbers (*); `InputError` if x_obs is no observation of that shape."""
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
