"""The ratio head: one function f(theta, x) whose differences are log likelihood ratios."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from sbi_core.estimators.estimator import Estimator, joined
from sbi_core.estimators.networks import mlp, reset
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
        reset(self.network)

    def adapt(self, rows: Simulations) -> list[str]:
        """Fit the scaling to training rows; return a flag for constant columns."""
        self._adapt_conditions(rows)
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
            count = self.categories or 0
            seen = one_hot(self._labels(flat[..., 0], count), count).to(torch.float32)
        else:
            seen = self.x_scaler(flat)

        def log_likelihood(theta: Tensor) -> Tensor:
            value: Tensor = self.network(joined([seen, *self._conditions(theta, design)]))
            return value[..., 0]

        return log_likelihood
