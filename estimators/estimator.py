"""What every estimator is: a function log p(x | theta, design), up to a term without theta."""

import abc
import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from sbi_core.errors import InputError, SbiWarning
from sbi_core.estimators.counts import checked_count, present_in
from sbi_core.estimators.embeddings import chosen
from sbi_core.estimators.networks import reset
from sbi_core.estimators.scaling import Scaler
from sbi_core.parameters import Parameter, names
from sbi_core.priors import UniformPrior
from sbi_core.seeding import seeded
from sbi_core.simulations import Rows, Simulations


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Columns side by side: parts (*, W_k), whose leading axes broadcast, to (*, sum of W_k)."""
    shape = np.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*shape, -1) for part in parts], -1)


class Estimator(nn.Module, abc.ABC):
    """Learned log likelihood. Callers speak the simulator's units; the scaling is inside.

    Args:
        parameters: the D axes of theta.
        x_shape: shape of one observation.
        designs: the K axes of the design (may be empty).
        categories: x is a class label below this number.
        counted: x (n_max, ...) is a zero-padded run of events, of which the first `n_events` count.
        embedding: a network that reads x before theta and the design join: a name in `EMBEDDINGS`, a mapping with
            `name` and options (see `embedding`), or a module of your own (see `as_embedding`), which is copied.
            `fit` gives it new weights with all others, except those with `requires_grad` False.

    Attributes:
        normalized: what the estimator is a density of, "x" or "theta"; empty for a ratio. Class attribute.
        uncounted: what to do about runs of events that it cannot count, in words. Class attribute.
        features: how many numbers a network reads of one x.
        regression: the `GaussianRegression` that the network corrects, `None` if there is none.
        decay: weight decay times training rows that suits it by default. Class attribute.
        familiar: what is remembered of the training rows' x (see `Familiar`); `None` before training.
    """

    trained: Tensor
    always_full: Tensor
    normalized = ""
    decay = 500.0
    familiar: Any = None
    uncounted = "Build it with from_data(data), or counted=True."

    def __init__(
        self,
        parameters: Sequence[Parameter],
        x_shape: Sequence[int],
        *,
        designs: Sequence[Parameter] = (),
        categories: int | None = None,
        counted: bool = False,
        embedding: Any = None,
    ) -> None:
        super().__init__()
        self.axes = tuple(parameters)
        self.designs = tuple(designs)
        self.x_shape = tuple(x_shape)
        self.categories = categories
        self.options: dict[str, Any] = {}
        self.provenance: dict[str, Any] = {}
        self.width = torch.Size(self.x_shape).numel()
        self.theta_scaler = Scaler(len(self.axes))
        self.design_scaler = Scaler(len(self.designs))
        self.counted = counted
        self.classes = {0: categories} if categories else dict[int, int]()
        self.regression: Any = None
        self._set_embedding(embedding)
        self.register_buffer("trained", torch.tensor(False))
        if counted:
            self.register_buffer("always_full", torch.tensor(False))

    def _set_embedding(self, choice: Any) -> None:
        if choice is not None and self.categories:
            raise InputError("embedding: x is a class label, which enters one-hot. Leave the embedding out.")
        with seeded(0):
            self.embedding = None if choice is None else chosen(choice, self.x_shape)
        if self.embedding is None:
            self.features = self.categories or self.width
            pooled: tuple[int, ...] = ()
        else:
            self.features, pooled = self.embedding.features, self.embedding.pooled
        self.joins_count = self.counted and not (self.embedding is not None and self.embedding.takes_n_events)
        self.features += self.joins_count
        plain = self.embedding is None and not self.counted
        self.x_scaler = Scaler(self.width if plain else self.x_shape, (0, *pooled) if self.counted else pooled)

    @classmethod
    def from_data(cls, data: Rows, **options: Any) -> Self:
        """Build one whose shapes fit the data; `options` go to the constructor."""
        first, info = data[:1], data.info
        designs = info.designs if first.design is not None else ()
        if first.n_events is not None and "counted" in inspect.signature(cls).parameters:
            options = {"counted": True, **options}
        return cls(info.parameters, first.x.shape[1:], designs=designs, categories=info.categories, **options)

    @abc.abstractmethod
    def observe(
        self, x: Tensor, design: Tensor | None = None, *, n_events: Tensor | None = None
    ) -> Callable[[Tensor], Tensor]:
        """Look at x (*, event), of which n_events (*) count, once: the function theta (*, D) -> nats (*)."""

    def adapt(self, rows: Simulations) -> list[str]:
        """Fit the scaling to training rows; return a flag for each constant column of x.

        Raises:
            InputError: if all of x is constant, or the rows are runs of events and the estimator does not count them.
        """
        self.theta_scaler.adapt(rows.theta)
        if rows.design is not None:
            self.design_scaler.adapt(rows.design)
        self._check_x(rows.x)
        if self.counted:
            self.always_full.fill_(False)
        x, present = self._present(rows)
        if present is not None:
            self.always_full.fill_(bool(present.all()))
        self.x_scaler.adapt(x, present, symmetry=getattr(self.embedding, "symmetry", "none"))
        if not bool(self.x_scaler.used.any()) and not self.needs_n_events:
            raise InputError(
                "x is constant in the training rows: nothing to learn. (In float32 a small signal on a large offset is "
                "lost: store x in float64, or without the offset.)"
            )
        pooled = self.x_scaler.pooled
        what = "column" if not pooled else "feature" if 0 in pooled else "channel"
        return [
            f"x {what} {k} is constant in the training rows; it was left out"
            for k in self.x_scaler.constant
            if k not in self.classes
        ]

    def far(self, rows: Simulations) -> list[int]:
        """Numbers of the rows whose x is so far out, after `adapt`, that a Cauchy tail would hardly reach it."""
        return rows.row[self.x_scaler.far(*self._present(rows))].tolist()

    def _present(self, rows: Simulations) -> tuple[Tensor, Tensor | None]:
        """x as its scaler takes it, and which of its numbers are not padding."""
        x, count = rows.x.reshape(len(rows), *self.x_scaler.shape), self._count(rows.n_events, rows.x.shape[:1])
        return x, None if count is None else present_in(count, self.x_shape).expand(x.shape)

    def set_unit(self, whitening: Tensor) -> None:
        """Take note, before training, of the W (D, D) that whitens the joint score."""

    def normalise(self, rows: Simulations, weight: Tensor | None) -> None:
        """Learn, after training, what must be averaged over rows that stand for one theta, with weights (N,)."""

    def denormalise(self) -> None:
        """Forget, before training goes on, what `normalise` learned."""

    @abc.abstractmethod
    def reset(self) -> None:
        """Draw new initial weights from torch's global random state."""

    def _reset_embedding(self) -> None:
        if self.embedding is not None:
            reset(self.embedding)

    def log_likelihood(
        self, theta: Tensor, x: Tensor, design: Tensor | None = None, *, n_events: Tensor | None = None
    ) -> Tensor:
        """log p(x | theta, design), nats, up to a term without theta; theta (*, D), x (*, event), n_events (*), (*)."""
        return self.observe(x, design, **({} if n_events is None else {"n_events": n_events}))(theta)

    @torch.no_grad()
    def log_evidence(
        self,
        x: Tensor,
        design: Tensor | None = None,
        *,
        prior: Distribution | None = None,
        n: int = 10_000,
        seed: int = 0,
        n_events: Tensor | None = None,
    ) -> Tensor:
        """log of the mean of exp f(theta, x) over the prior, nats, (*): f minus this is log p(x | theta) / p(x).

        Of a head that is normalised in x it is log p(x) itself. Its standard error is about 1/sqrt(number of draws
        that matter); where fewer than 100 do, a warning says so.

        Args:
            x: (*, event).
            design: (*, K).
            prior: density of theta, event shape (D,); by default uniform over the parameters' ranges.
            n: draws of theta.
            seed: fixes them.
            n_events: (*), for runs of events.
        """
        look = self.observe(x, design, **({} if n_events is None else {"n_events": n_events}))
        axes = [1] * (x.ndim - len(self.x_shape))
        with seeded(seed):
            theta = (prior or UniformPrior(self.axes)).sample(torch.Size([n])).double().to(x.device)
        step = max(1, 200_000 // max(1, math.prod(x.shape[: len(axes)])))
        total = squares = torch.tensor(-torch.inf, dtype=torch.float64, device=x.device)
        for part in theta.split(step):
            value = look(part.reshape(-1, *axes, len(self.axes))).double()
            total, squares = total.logaddexp(value.logsumexp(0)), squares.logaddexp((2 * value).logsumexp(0))
        effective = float((2 * total - squares).exp().min())
        if effective < 100:
            text = f"log_evidence: of n = {n} draws of the prior only {effective:.0f} matter for some x. Raise n."
            warnings.warn(text, SbiWarning, stacklevel=3)
        return total - math.log(n)

    @property
    def needs_n_events(self) -> bool:
        """Whether the number of events varies from row to row, so that x alone does not say it."""
        return self.counted and not bool(self.always_full)

    @property
    def constants(self) -> Tensor:
        """The value of x (event) where it was constant in the training rows, NaN elsewhere, float64."""
        fixed = torch.where(self.x_scaler.used, torch.nan, self.x_scaler.shift)
        return fixed.expand(self.x_scaler.shape).reshape(self.x_shape)

    def _conditions(self, theta: Tensor, design: Tensor | None) -> list[Tensor]:
        """Scaled theta (*, D) and design (*, K)."""
        self._check_theta(theta)
        self._check_design(design)
        return [self.theta_scaler(theta), *([] if design is None else [self.design_scaler(design)])]

    def _check_theta(self, theta: Tensor) -> None:
        dims = len(self.axes)
        if theta.shape[-1:] != (dims,):
            raise InputError(f"theta has shape {tuple(theta.shape)}, expected (*, {dims}) for {names(self.axes)}.")

    def _check_design(self, design: Tensor | None) -> None:
        if (design is None) != (not self.designs):
            needed = (
                f"needs a design with axes {names(self.designs)}" if self.designs else "was trained without designs"
            )
            raise InputError(f"{type(self).__name__} {needed}; design is {'missing' if design is None else 'given'}.")
        if design is not None and design.shape[-1:] != (len(self.designs),):
            expected = f"(*, {len(self.designs)}) for {names(self.designs)}"
            raise InputError(f"design has shape {tuple(design.shape)}, expected {expected}.")

    def _columns(self, x: Tensor) -> Tensor:
        """x (*, event) as columns (*, W)."""
        self._check_x(x)
        return x.flatten(x.ndim - len(self.x_shape))

    def seen(self, x: Tensor, n_events: Tensor | None = None) -> Tensor:
        """What a network reads of x (*, event), (*, features), float32.

        A label is one-hot, numbers are scaled, and pass the embedding if there is one. Padding becomes zero, whatever
        it holds, and log((1 + n) / (1 + n_max)) joins unless the embedding reads n_events.
        """
        columns = self._columns(x)
        leading = columns.shape[:-1]
        count = self._count(n_events, leading)
        if self.categories:
            return nn.functional.one_hot(self._labels(columns[..., 0], self.categories), self.categories).float()
        scaled: Tensor = self.x_scaler(x.reshape(*leading, *self.x_scaler.shape))
        if count is not None:
            scaled = torch.where(present_in(count, self.x_shape), scaled, 0.0)
        if self.embedding is None:
            seen = scaled.reshape(*leading, self.width)
        else:
            rows = scaled.reshape(-1, *self.x_shape)
            seen = self.embedding(rows, None if count is None or self.joins_count else count.reshape(-1))
            seen = seen.reshape(*leading, -1) if len(rows) else seen.new_zeros(*leading, self.embedding.features)
        if count is None or not self.joins_count:
            return seen
        return joined([seen, torch.log((1.0 + count) / (1.0 + self.x_shape[0]))[..., None].to(seen)])

    def _count(self, n_events: Tensor | None, leading: Sequence[int]) -> Tensor | None:
        """Events in each x (*leading); `None` if they are not counted."""
        if n_events is None and not self.counted:
            return None
        cure = "It was trained on full runs only." if self.counted else self.uncounted
        name, varies = type(self).__name__, self.needs_n_events
        count = checked_count(name, n_events, leading, self.x_shape[0], varies=varies, otherwise=cure)
        return count.to(self.trained.device) if self.counted else None

    def _check_x(self, x: Tensor) -> None:
        event = len(self.x_shape)
        if x.shape[x.ndim - event :] != self.x_shape or x.ndim < event:
            raise InputError(f"x has shape {tuple(x.shape)}, expected (*, {', '.join(map(str, self.x_shape))}).")

    @staticmethod
    def _labels(column: Tensor, count: int) -> Tensor:
        """Whole numbers from 0 to count - 1 as indices."""
        if bool(((column != column.round()) | (column < 0) | (column >= count)).any()):
            first = column.flatten()[:5].tolist()
            raise InputError(f"x holds values that are no label from 0 to {count - 1}: {first} ...")
        return column.long()

    def save(self, folder: str | Path) -> Path:
        """Write weights (safetensors) and description (JSON) into a folder; `load_estimator` reads them back."""
        from sbi_core.estimators.files import save_estimator

        return save_estimator(self, folder)

    def describe(self) -> Mapping[str, Any]:
        """Plain data from which `load_estimator` builds the same shapes again."""
        return {
            "class": type(self).__name__,
            "parameters": [vars(p) for p in self.axes],
            "designs": [vars(p) for p in self.designs],
            "x_shape": list(self.x_shape),
            "categories": self.categories,
            "options": self.options,
            **({"counted": True} if self.counted else {}),
            **({} if self.embedding is None else {"embedding": self.embedding.described}),
        }
