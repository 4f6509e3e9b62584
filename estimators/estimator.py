"""What every estimator is: a function log p(x | theta, design), up to a term without theta."""

import abc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from sbi_core.errors import InputError
from sbi_core.estimators.scaling import Scaler
from sbi_core.parameters import Parameter, names
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

    Attributes:
        normalized: what the estimator is a density of, "x" or "theta"; empty for a ratio. Class attribute.
    """

    trained: Tensor
    normalized = ""

    def __init__(
        self,
        parameters: Sequence[Parameter],
        x_shape: Sequence[int],
        *,
        designs: Sequence[Parameter] = (),
        categories: int | None = None,
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
        self.x_scaler = Scaler(self.width)
        self.register_buffer("trained", torch.tensor(False))

    @classmethod
    def from_data(cls, data: Rows, **options: Any) -> Self:
        """Build one whose shapes fit the data; `options` go to the constructor."""
        first, info = data[:1], data.info
        designs = info.designs if first.design is not None else ()
        return cls(info.parameters, first.x.shape[1:], designs=designs, categories=info.categories, **options)

    @abc.abstractmethod
    def observe(self, x: Tensor, design: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """Look at x (*, event) once and return the function theta (*, D) -> nats (*)."""

    def adapt(self, rows: Simulations) -> list[str]:
        """Fit the scaling to training rows; return a flag for each constant column of x."""
        self.theta_scaler.adapt(rows.theta)
        if rows.design is not None:
            self.design_scaler.adapt(rows.design)
        self.x_scaler.adapt(rows.x.flatten(1))
        constant = [] if self.categories else self.x_scaler.constant
        return [f"x column {k} is constant in the training rows; it was left out" for k in constant]

    @abc.abstractmethod
    def reset(self) -> None:
        """Draw new initial weights from torch's global random state."""

    def log_likelihood(self, theta: Tensor, x: Tensor, design: Tensor | None = None) -> Tensor:
        """log p(x | theta, design) in nats up to a term without theta; theta (*, D), x (*, event), together (*)."""
        return self.observe(x, design)(theta)

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

    def _seen(self, x: Tensor) -> Tensor:
        """What a network reads of x (*, event): a label one-hot (*, categories), numbers scaled (*, W), float32."""
        if self.categories:
            label = self._labels(self._columns(x)[..., 0], self.categories)
            return one_hot(label, self.categories).to(torch.float32)
        scaled: Tensor = self.x_scaler(self._columns(x))
        return scaled

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
        }
