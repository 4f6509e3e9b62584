"""The posterior head: a normalised density of theta given x."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, biject_to

from sbi_core.errors import InputError
from sbi_core.estimators.estimator import Estimator, joined
from sbi_core.estimators.flows import ConditionalFlow, kind_for
from sbi_core.estimators.regression import GaussianRegression
from sbi_core.estimators.scaling import Scaler
from sbi_core.parameters import Parameter, names
from sbi_core.priors import describe, restore
from sbi_core.seeding import seeded
from sbi_core.simulations import Info, Rows, Simulations


class PosteriorEstimator(Estimator):
    """log q(theta | x, design), normalised over the support of the proposal that theta was drawn from.

    A flow of u given x, with theta = b(u) and b the bijection from the real numbers onto that support, so that every
    draw lies inside; where no embedding reads x, it may be one of the residuals of a linear regression of u on x. What
    other code reads is log q(theta | x) - log proposal(theta) = log p(x | theta) + const.
    Papamakarios & Murray, arXiv:1605.06376, proposition 1; Greenberg, Nonnenmacher & Macke, arXiv:1905.07488.

    Args:
        parameters: the D axes of theta; none may be whole numbers.
        x_shape: shape of one observation; it is flattened unless an embedding reads it.
        designs: the K axes of the design.
        categories: x is a class label below this number.
        proposal: density of the training rows' theta, or its description; by default that of the rows.
        flow: kind of flow, one of `FLOWS`; by default "nsf" up to 6 columns and "maf" beyond.
        transforms: layers of the flow.
        flow_hidden: units in each hidden layer of the flow's networks.
        regression: whether the flow may be that of the residuals of a linear regression (see `start`).
        counted: x is a zero-padded run of events, see `Estimator`.
        embedding: a network that reads x, see `Estimator`.

    Raises:
        InputError: for parameters that are whole numbers.

    Example:
        >>> from sbi_core import simulate
        >>> from sbi_core.simulators import LinearGaussian
        >>> data = simulate(LinearGaussian(2), 100, seed=1, progress=False)
        >>> head = PosteriorEstimator.from_data(data)
        >>> head.sample(data.x[:4], 3).shape
        torch.Size([4, 3, 2])
    """

    normalized = "theta"

    def __init__(
        self,
        parameters: Sequence[Parameter],
        x_shape: Sequence[int],
        *,
        designs: Sequence[Parameter] = (),
        categories: int | None = None,
        proposal: Distribution | Mapping[str, Any] | None = None,
        flow: str | None = None,
        transforms: int = 5,
        flow_hidden: int = 50,
        regression: bool = True,
        counted: bool = False,
        embedding: Any = None,
    ) -> None:
        super().__init__(
            parameters, x_shape, designs=designs, categories=categories, counted=counted, embedding=embedding
        )
        whole = [p.name for p in self.axes if p.integer]
        if whole:
            raise InputError(f"parameters {whole} are whole numbers, and a flow has no such. Use a RatioEstimator.")
        flow = flow or kind_for(len(self.axes))
        self.options = {"proposal": None, "flow": flow, "transforms": transforms, "flow_hidden": flow_hidden}
        self.options["regression"] = regression
        self._set_proposal(restore(proposal) if isinstance(proposal, Mapping) else proposal)
        self.unbounded_scaler = Scaler(len(self.axes))
        with seeded(0):
            columns = self.features + len(self.designs)
            self.flow = ConditionalFlow(len(self.axes), columns, kind=flow, transforms=transforms, hidden=flow_hidden)
        self.regression = GaussianRegression(len(self.axes), columns)

    @classmethod
    def from_data(cls, data: Rows, **options: Any) -> "PosteriorEstimator":
        """Build one whose shapes fit the data, with their proposal; `options` go to the constructor."""
        return super().from_data(data, **{"proposal": data.info.proposal, **options})

    def _set_proposal(self, proposal: Distribution | None) -> None:
        self.proposal = proposal
        self.options["proposal"] = describe(proposal)
        if self.options["proposal"] is not None and self.options["proposal"].get("opaque"):
            raise InputError(
                f"proposal {proposal!r} cannot be written down, so what is relative to it could not be read back. "
                "Use a UniformPrior or one of torch's own distributions."
            )

    def reset(self) -> None:
        """Draw new initial weights from torch's global random state."""
        self._reset_embedding()
        self.flow.reset()

    def adapt(self, rows: Simulations) -> list[str]:
        """Fit scaling and regression to training rows; return a flag for constant columns."""
        self._check_proposal(rows.info)
        free = self._unbounded(rows.theta)
        self.unbounded_scaler.adapt(free)
        flags = super().adapt(rows)
        if self.embedding is None and self.options["regression"]:
            self.regression.adapt(self.unbounded_scaler(free), self._context(rows.x, rows.design, rows.n_events))
        return flags

    def _check_proposal(self, info: Info) -> None:
        known, own = describe(info.proposal), self.options["proposal"]
        if own is None and info.proposal is not None:
            self._set_proposal(info.proposal)
        elif own is None:
            raise InputError(
                "proposal: the rows do not say which density theta was drawn from, and a posterior is relative to it. "
                "Give PosteriorEstimator(proposal=...)."
            )
        elif known is not None and known != own:
            raise InputError(f"proposal: the rows come from {info.proposal!r}, the estimator has {self.proposal!r}.")

    def _unbounded(self, theta: Tensor) -> Tensor:
        """u = b^-1(theta), (*, D); NaN outside the support."""
        assert self.proposal is not None  # `adapt` made sure
        support: Any = self.proposal.support
        inside = support.check(theta)
        start = biject_to(support)(torch.zeros_like(theta))
        return torch.where(
            inside[..., None], biject_to(support).inv(torch.where(inside[..., None], theta, start)), torch.nan
        )

    def log_posterior(
        self, theta: Tensor, x: Tensor, design: Tensor | None = None, *, n_events: Tensor | None = None
    ) -> Tensor:
        """log q(theta | x, design) in nats per unit of theta; theta (*, D), x (*, event), n_events (*), as (*)."""
        return self._density(x, design, n_events)(theta)

    def observe(
        self, x: Tensor, design: Tensor | None = None, *, n_events: Tensor | None = None
    ) -> Callable[[Tensor], Tensor]:
        """Look at x (*, event), n_events (*), once: theta (*, D) -> log q(theta | x) - log proposal(theta), (*).

        Minus infinity outside the support of the proposal, where nothing was learned.
        """
        density = self._density(x, design, n_events)

        def log_likelihood(theta: Tensor) -> Tensor:
            assert self.proposal is not None  # a trained estimator has one
            relative = self.proposal.log_prob(theta)
            found = density(theta)
            return torch.where(relative.isfinite(), found - relative, -torch.inf)

        return log_likelihood

    def _density(self, x: Tensor, design: Tensor | None, n_events: Tensor | None) -> Callable[[Tensor], Tensor]:
        given = self._context(x, design, n_events)

        def log_posterior(theta: Tensor) -> Tensor:
            self._check_theta(theta)
            free = self._unbounded(theta)
            inside = free.isfinite().all(-1)
            free = torch.where(inside[..., None], free, 0.0)
            assert self.proposal is not None
            slope = -biject_to(self.proposal.support).log_abs_det_jacobian(free, theta)
            slope = slope + self.unbounded_scaler.log_slope(free).sum(-1)
            both = joined([self.unbounded_scaler(free), given])
            pairs = both.reshape(-1, both.shape[-1])
            dims = len(self.axes)
            density = self.regression.log_prob(self.flow, pairs[:, :dims], pairs[:, dims:])
            return torch.where(inside, density.reshape(both.shape[:-1]) + slope, -torch.inf)

        return log_posterior

    def _context(self, x: Tensor, design: Tensor | None, n_events: Tensor | None) -> Tensor:
        """What is read of x, and scaled design, side by side, (*, C)."""
        seen = self.seen(x, n_events)
        self._check_design(design)
        return seen if design is None else joined([seen, self.design_scaler(design)])

    @torch.no_grad()
    def sample(self, x: Tensor, n: int, design: Tensor | None = None, *, n_events: Tensor | None = None) -> Tensor:
        """Draw n thetas for each x (*, event), (*, n, D), float64, inside the support, from torch's global state.

        Of runs of events the first n_events (*) count.
        """
        given = self._context(x, design, n_events)
        drawn = self.regression.sample(self.flow, given.reshape(-1, given.shape[-1]), n)
        assert self.proposal is not None
        theta: Tensor = biject_to(self.proposal.support)(self.unbounded_scaler.inverse(drawn))
        return theta.reshape(*given.shape[:-1], n, len(names(self.axes)))
