"""The ratio head: one function f(theta, x) whose differences are log likelihood ratios."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from sbi_core.errors import InputError
from sbi_core.estimators.estimator import Estimator
from sbi_core.estimators.networks import mlp
from sbi_core.estimators.scaling import Scaler
from sbi_core.parameters import Parameter
from sbi_core.seeding import seeded
from sbi_core.simulations import Simulations


class RatioEstimator(Estimator):
    """f(theta, x, design) = log p(x | theta, design) up to a term without theta, as a multilayer perceptron.

    The log ratio of two hypotheses is f(theta0, x) - f(theta1, x): antisymmetric and transitive by construction.
    Class labels enter one-hot.

    Args:
        parameters: the D axes of theta.
        x_shape: shape of one observation.
        designs: the K axes of the design.
        categories: x is a class label below this number.
        hidden: widths of the hidden layers.

    Example:
        >>> from sbi_core import simulate
        >>> from sbi_core.simulators import GaltonBoard
        >>> data = simulate(GaltonBoard(), 100, seed=1, progress=False)
        >>> head = RatioEstimator.from_data(data)
        >>> head.log_likelihood(data.theta, data.x).shape
        torch.Size([100])
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        x_shape: Sequence[int],
        *,
        designs: Sequence[Parameter] = (),
        categories: int | None = None,
        hidden: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__(parameters, x_shape, designs=designs, categories=categories)
        self.options = {"hidden": list(hidden)}
        flat = torch.Size(self.x_shape).numel()
        self.x_scaler = None if categories else Scaler(flat)
        width = (categories or flat) + len(self.axes) + len(self.designs)
        with seeded(0):
            self.network = mlp(width, hidden, 1)

    def reset(self) -> None:
        """Draw new initial weights from torch's global random state."""
        for layer in self.network:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()

    def adapt(self, rows: Simulations) -> list[str]:
        """Fit the scaling to training rows; return a flag for constant columns."""
        self.theta_scaler.adapt(rows.theta)
        if rows.design is not None:
            self.design_scaler.adapt(rows.design)
        if self.x_scaler is None:
            return []
        self.x_scaler.adapt(rows.x.flatten(1))
        constant = self.x_scaler.constant
        return [f"x column {k} is constant in the training rows; it was left out" for k in constant]

    def observe(self, x: Tensor, design: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """Scale x (*, event) once and return the function theta (*, D) -> nats (*)."""
        self._check_x(x)
        flat = x.flatten(x.ndim - len(self.x_shape))
        if self.x_scaler is None:
            label, count = flat[..., 0], self.categories or 0
            if bool(((label != label.round()) | (label < 0) | (label >= count)).any()):
                raise InputError(
                    f"x holds values that are no label from 0 to {count - 1}: {label.flatten()[:5].tolist()} ..."
                )
            seen = one_hot(label.long(), count).to(torch.float32)
        else:
            seen = self.x_scaler(flat)

        def log_likelihood(theta: Tensor) -> Tensor:
            inputs = [seen, *self._conditions(theta, design)]
            shape = np.broadcast_shapes(*(part.shape[:-1] for part in inputs))
            joined = torch.cat([part.expand(*shape, -1) for part in inputs], -1)
            value: Tensor = self.network(joined)
            return value[..., 0]

        return log_likelihood
