"""The score head: grad log p(x | theta_ref) as a function of x, and the likelihood it gives near theta_ref."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from sbi_core.errors import InputError
from sbi_core.estimators.estimator import Estimator, joined
from sbi_core.estimators.networks import mlp, reset
from sbi_core.parameters import Parameter, names
from sbi_core.seeding import seeded
from sbi_core.simulations import Rows, Simulations

KEPT = 4096
"""Scores of training rows that are kept for the normaliser, at most."""

_AT_ONCE = 1024


class ScoreEstimator(Estimator):
    """s(x) = grad_theta log p(x | theta) at theta_ref, per unit of each parameter; learned by `sally`.

    Its log likelihood is the exponential family with s as sufficient statistic (Brehmer et al., arXiv:1805.00020,
    section III, "local model"),

        f(theta, x) = s(x) . (theta - theta_ref) - log Z(theta),   Z(theta) = E_ref[exp(s . (theta - theta_ref))],

    which agrees with log p(x | theta) / p(x | theta_ref) to first order in theta - theta_ref and no further. E_ref is
    the mean over up to `KEPT` training rows, with their weights; there grad Z = 0 at theta_ref, so grad f = s.

    Args:
        parameters: the D axes of theta.
        x_shape: shape of one observation.
        theta_ref: where the score is taken, (D,).
        designs: the K axes of the design; with designs there is a score, but no log likelihood.
        categories: x is a class label below this number.
        hidden: widths of the hidden layers.
        counted: x is a zero-padded run of events, see `Estimator`.
        embedding: a network that reads x, see `Estimator`.

    Raises:
        InputError: for a theta_ref of another length.

    Example:
        >>> from sbi_core import simulate
        >>> from sbi_core.simulators import GaltonBoard
        >>> data = simulate(GaltonBoard(), 100, proposal=[-0.7], seed=1, progress=False)
        >>> head = ScoreEstimator.from_data(data)
        >>> head.score(data.x).shape
        torch.Size([100, 1])
    """

    normalized = "score"
    theta_ref: Tensor
    unit: Tensor
    kept: Tensor
    kept_weight: Tensor

    def __init__(
        self,
        parameters: Sequence[Parameter],
        x_shape: Sequence[int],
        *,
        theta_ref: Any,
        designs: Sequence[Parameter] = (),
        categories: int | None = None,
        hidden: Sequence[int] = (64, 64),
        counted: bool = False,
        embedding: Any = None,
    ) -> None:
        super().__init__(
            parameters, x_shape, designs=designs, categories=categories, counted=counted, embedding=embedding
        )
        dims = len(self.axes)
        at = torch.as_tensor(theta_ref, dtype=torch.float64)
        if at.shape != (dims,) or not bool(at.isfinite().all()):
            raise InputError(f"theta_ref = {theta_ref}, expected {dims} numbers for {names(self.axes)}.")
        self.options = {"theta_ref": at.tolist(), "hidden": list(hidden)}
        self.register_buffer("theta_ref", at)
        self.register_buffer("unit", torch.eye(dims, dtype=torch.float64))
        self.register_buffer("kept", torch.zeros(KEPT, dims, dtype=torch.float64))
        self.register_buffer("kept_weight", (torch.arange(KEPT) == 0).double())
        with seeded(0):
            self.network = mlp(self.features + len(self.designs), hidden, dims)

    @classmethod
    def from_data(cls, data: Rows, **options: Any) -> Self:
        """Build one whose shapes fit the data; theta_ref is the rows' own theta unless it is among the `options`.

        Raises:
            InputError: if theta_ref is not given and the first rows are not all at one theta.
        """
        if options.get("theta_ref") is None:
            theta = data[:1000].theta
            if not bool((theta == theta[0]).all()):
                raise InputError(
                    "theta_ref is missing, and the rows are at many thetas. Give theta_ref=..., or rows at one theta: "
                    "simulate(simulator, n, proposal=theta_ref)."
                )
            options = {**options, "theta_ref": theta[0]}
        return super().from_data(data, **options)

    @property
    def caveat(self) -> str:
        """Where its log likelihood can be believed."""
        return f"valid near theta_ref = {self.theta_ref.tolist()} only: a local model, exact to first order"

    def reset(self) -> None:
        """Draw new initial weights from torch's global random state."""
        self._reset_embedding()
        reset(self.network)

    def set_unit(self, whitening: Tensor) -> None:
        """Let the network speak in units in which the joint score is white: W (D, D)."""
        self.unit.copy_(torch.linalg.pinv(whitening))

    @torch.no_grad()
    def normalise(self, rows: Simulations, weight: Tensor | None) -> None:
        """Learn E_ref from N rows, with weights (N,) unless they were simulated at theta_ref."""
        share = torch.ones(len(rows), dtype=torch.float64) if weight is None else weight
        share = share[:KEPT] / share[:KEPT].sum()
        score = self.score_of(rows[:KEPT])
        self.kept.zero_()[: len(score)] = score - share @ score
        self.kept_weight.zero_()[: len(score)] = share

    def score(self, x: Tensor, design: Tensor | None = None, *, n_events: Tensor | None = None) -> Tensor:
        """grad_theta log p(x | theta, design) at theta_ref; x (*, event), design (*, K), n_events (*), as (*, D)."""
        self._check_design(design)
        seen = self.seen(x, n_events)
        value: Tensor = self.network(seen if design is None else joined([seen, self.design_scaler(design)]))
        return value.double() @ self.unit.T

    @torch.no_grad()
    def score_of(self, rows: Simulations) -> Tensor:
        """`score` of N rows, (N, D)."""
        parts = [rows[k : k + _AT_ONCE] for k in range(0, len(rows), _AT_ONCE)]
        return torch.cat([self.score(part.x, part.design, n_events=part.n_events) for part in parts])

    def observe(
        self, x: Tensor, design: Tensor | None = None, *, n_events: Tensor | None = None
    ) -> Callable[[Tensor], Tensor]:
        """Take the score of x (*, event), n_events (*), once: the function theta (*, D) -> nats (*).

        Raises:
            InputError: with designs: Z is known on average over the training rows' designs only.
        """
        if self.designs:
            raise InputError(
                f"ScoreEstimator with designs {names(self.designs)} has a score, but no log likelihood: its normaliser "
                "would be needed at each design. Fit a density to the score (see `summarise`)."
            )
        score = self.score(x, design, n_events=n_events)

        def log_likelihood(theta: Tensor) -> Tensor:
            self._check_theta(theta)
            step = theta.double() - self.theta_ref
            return (score * step).sum(-1) - self._log_normaliser(step)

        return log_likelihood

    def _log_normaliser(self, step: Tensor) -> Tensor:
        """log E_ref[exp(s . step)] for step (*, D), (*)."""
        used, flat = self.kept_weight > 0, step.reshape(-1, step.shape[-1])
        kept, log_weight = self.kept[used].T, self.kept_weight[used].log()
        parts = [torch.logsumexp(part @ kept + log_weight, -1) for part in flat.split(_AT_ONCE)]
        return torch.cat(parts).reshape(step.shape[:-1])
