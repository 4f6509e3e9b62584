"""The ratio head: one function f(theta, x) whose differences are log likelihood ratios."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sbi_core.estimators.centring import ROWS, Centring
from sbi_core.estimators.estimator import Estimator, joined
from sbi_core.estimators.networks import mlp, reset
from sbi_core.estimators.regression import WIDEST, GaussianRegression
from sbi_core.parameters import Parameter
from sbi_core.seeding import seeded
from sbi_core.simulations import Simulations

if TYPE_CHECKING:
    from sbi_core.estimators.losses import Batch

_AT_ONCE = 1000


class RatioEstimator(Estimator):
    """f(theta, x, design) = log p(x | theta, design) up to a term without theta, as a multilayer perceptron.

    The log ratio of two hypotheses is f(theta0, x) - f(theta1, x): antisymmetric and transitive by construction.
    Plain numbers x start with their linear regression on theta and design, f = -|residual|^2 / 2 (see
    `GaussianRegression`), to which the perceptron adds; it reads the residual too, which has the scale of the
    posterior where x and theta have that of the prior. Class labels enter one-hot, and what has an embedding passes it.

    Args:
        parameters: the D axes of theta.
        x_shape: shape of one observation.
        designs: the K axes of the design.
        categories: x is a class label below this number.
        hidden: widths of the hidden layers; by default three of 64, of class labels two.
        regression: whether plain numbers x may start with their linear regression (see `start`).
        counted: x is a zero-padded run of events, see `Estimator`.
        embedding: a network that reads x, see `Estimator`.
        centred: take from f, after training, what it gets wrong in all x alike (see `Centring`): for many observations
            at one theta.

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
        hidden: Sequence[int] | None = None,
        regression: bool = True,
        counted: bool = False,
        embedding: Any = None,
        centred: bool = False,
    ) -> None:
        super().__init__(
            parameters, x_shape, designs=designs, categories=categories, counted=counted, embedding=embedding
        )
        hidden = list(hidden or ([64, 64] if categories else [64, 64, 64]))
        self.options = {"hidden": hidden, "regression": regression, **({"centred": True} if centred else {})}
        self.centring = Centring(self.axes, self.designs) if centred else None
        given = len(self.axes) + len(self.designs)
        if regression and self.embedding is None and not categories and not counted and self.width <= WIDEST:
            self.regression = GaussianRegression(self.width, given)
        residuals = 0 if self.regression is None else self.width
        with seeded(0):
            self.network = mlp(self.features + given + residuals, hidden, 1)

    def reset(self) -> None:
        """Draw new initial weights from torch's global random state."""
        self._reset_embedding()
        reset(self.network)
        for part in self.network[-1].parameters():
            nn.init.zeros_(part)

    def adapt(self, rows: Simulations) -> list[str]:
        """Fit scaling and regression to training rows; return a flag for constant columns."""
        flags = super().adapt(rows)
        if self.regression is not None:
            self.regression.adapt(self.seen(rows.x), joined(self._conditions(rows.theta, rows.design)))
        return flags

    def normalise(self, rows: Simulations, weight: Tensor | None) -> None:
        """Learn from rows, theta (N, D), what f gets wrong in all x alike, if it is to be centred."""
        if self.centring is None:
            return
        self.denormalise()
        scores = []
        for part in (rows[k : k + _AT_ONCE] for k in range(0, min(len(rows), ROWS), _AT_ONCE)):
            with torch.no_grad():
                seen = self.seen(part.x, part.n_events)
            theta = part.theta.detach().requires_grad_()
            with torch.enable_grad():
                value = self.look(seen, part.design)(theta).sum()
            scores.append(torch.autograd.grad(value, theta)[0])
        self.centring.fit(rows.theta[:ROWS], torch.cat(scores), None if rows.design is None else rows.design[:ROWS])

    def denormalise(self) -> None:
        """Forget, before training goes on, what `normalise` learned of f as it was."""
        if self.centring is not None:
            self.centring.coefficients.zero_()

    def observe(
        self, x: Tensor, design: Tensor | None = None, *, n_events: Tensor | None = None
    ) -> Callable[[Tensor], Tensor]:
        """Scale and embed x (*, event), n_events (*), once: the function theta (*, D) -> nats (*)."""
        return self.look(self.seen(x, n_events), design)

    def look(self, seen: Tensor, design: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """`observe` for x that was scaled and embedded, seen (*, features): the function theta (*, D) -> nats (*)."""
        learned, centring = self._learned(seen, design), self.centring
        if centring is None or self.training or not centring.degree:
            return learned
        return lambda theta: (value := learned(theta)) - centring(theta, design).to(value)

    def _learned(self, seen: Tensor, design: Tensor | None) -> Callable[[Tensor], Tensor]:
        regression = self.regression
        residual = None if regression is None else regression.look(seen)

        def log_likelihood(theta: Tensor) -> Tensor:
            given = self._conditions(theta, design)
            if residual is None:
                value: Tensor = self.network(joined([seen, *given]))[..., 0]
                return value
            off = residual(joined(given))
            linear: Tensor = -0.5 * off.square().sum(-1)
            if regression.alone:
                return linear
            value = self.network(joined([seen, *given, off]))[..., 0]
            return value + linear if regression.used else value

        return log_likelihood

    @torch.no_grad()
    def prepared(self, batch: "Batch") -> "Batch":
        """The batch with plain numbers x scaled once for all steps; labels and what an embedding reads stay."""
        if self.embedding is not None or self.categories:
            return batch
        return replace(batch, seen=self.seen(batch.x, batch.n_events))
