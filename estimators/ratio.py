"""The ratio head: one function f(theta, x) whose differences are log likelihood ratios."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from sbi_core.estimators.estimator import Estimator, joined
from sbi_core.estimators.networks import mlp, reset
from sbi_core.parameters import Parameter
from sbi_core.seeding import seeded


class RatioEstimator(Estimator):
    """f(theta, x, design) = log p(x | theta, design) up to a term without theta, as a multilayer perceptron.

    The log ratio of two hypotheses is f(theta0, x) - f(theta1, x): antisymmetric and transitive by construction.
    Class labels enter one-hot. Other x pass the embedding if there is one.

    Args:
        parameters: the D axes of theta.
        x_shape: shape of one observation.
        designs: the K axes of the design.
        categories: x is a class label below this number.
        hidden: widths of the hidden layers.
        counted: x is a zero-padded run of events, see `Estimator`.
        embedding: a network that reads x, see `Estimator`.

    Example:
        >>> from sbi_core import simulate
        >>> from sbi_core.simulators import GaltonBoard
        >>> data = simulate(GaltonBoard(), 100, seed=1, progress=False)
        >>> head = RatioEstimator.from_data(data)
        >>> head.log_likelihood(data.theta, data.x).shape
        torch.Size([100])
    """

    decay = 50.0  # a tenth of what flows want: where posteriors are narrow, f must be steep

    def __init__(
        self,
        parameters: Sequence[Parameter],
        x_shape: Sequence[int],
        *,
        designs: Sequence[Parameter] = (),
        categories: int | None = None,
        hidden: Sequence[int] = (64, 64),
        counted: bool = False,
        embedding: Any = None,
    ) -> None:
        super().__init__(
            parameters, x_shape, designs=designs, categories=categories, counted=counted, embedding=embedding
        )
        self.options = {"hidden": list(hidden)}
        with seeded(0):
            self.network = mlp(self.features + len(self.axes) + len(self.designs), hidden, 1)

    def reset(self) -> None:
        """Draw new initial weights from torch's global random state."""
        self._reset_embedding()
        reset(self.network)

    def observe(
        self, x: Tensor, design: Tensor | None = None, *, n_events: Tensor | None = None
    ) -> Callable[[Tensor], Tensor]:
        """Scale and embed x (*, event), n_events (*), once: the function theta (*, D) -> nats (*)."""
        seen = self._seen(x, n_events)

        def log_likelihood(theta: Tensor) -> Tensor:
            value: Tensor = self.network(joined([seen, *self._conditions(theta, design)]))
            return value[..., 0]

        return log_likelihood
