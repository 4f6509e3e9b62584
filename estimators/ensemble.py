"""Several trainings of one estimator, read as one."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn

from sbi_core.errors import InputError
from sbi_core.estimators.estimator import Estimator
from sbi_core.simulations import Simulations


class Ensemble(Estimator):
    """f(theta, x) = (1/M) sum_m f_m(theta, x), with the spread of the f_m as a measure of what training left open.

    `infer` and `diagnose` mix the posteriors of the members; likelihood ratios, as in `limits`, and all else read f.

    Errors of the f_m that differ from training to training average out; those they share, such as the noise of the
    common rows, do not, and are not in the spread. Trainings differ by their seeds, or by their rows too if each gets
    a bootstrap of them. After Lakshminarayanan, Pritzel & Blundell, arXiv:1612.01474, with logarithms averaged.

    Args:
        members: M trained estimators of the same parameters, designs and shape of x, at least two.

    Raises:
        InputError: if they do not belong together, or one is untrained.

    Example:
        >>> from sbi_core import simulate
        >>> from sbi_core.estimators import RatioEstimator, alice, fit
        >>> from sbi_core.simulators import LinearGaussian
        >>> world = LinearGaussian(2)
        >>> data = simulate(world, 100, seed=1, progress=False)
        >>> head, options = RatioEstimator.from_data(data, hidden=[8]), {"max_epochs": 2, "progress": False}
        >>> both = Ensemble([fit(head, alice, data, simulator=world, seed=s, **options).estimator for s in (1, 2)])
        >>> both.spread(data.theta, data.x).shape
        torch.Size([100])
    """

    def __init__(self, members: Sequence[Estimator]) -> None:
        if len(members) < 2:
            raise InputError(f"members: {len(members)}, expected at least 2.")
        first = members[0]
        super().__init__(
            first.axes, first.x_shape, designs=first.designs, categories=first.categories, counted=first.counted
        )
        for number, member in enumerate(members):
            if not member.trained:
                raise InputError(f"members[{number}] is not trained. Give Ensemble the estimator of a finished fit.")
            for name in ("axes", "designs", "x_shape", "categories", "needs_n_events"):
                if getattr(member, name) != getattr(first, name):
                    raise InputError(
                        f"members[{number}] has {name} {getattr(member, name)}, members[0] {getattr(first, name)}: "
                        "expected the same."
                    )
        self.members = nn.ModuleList(members)
        if self.counted:
            self.always_full.copy_(first.always_full)
        self.familiar = first.familiar
        self.trained.fill_(True)
        self.eval()

    def observe(
        self, x: Tensor, design: Tensor | None = None, *, n_events: Tensor | None = None
    ) -> Callable[[Tensor], Tensor]:
        """Look at x (*, event), n_events (*), once with every member: the function theta (*, D) -> nats (*)."""
        every = self._every(x, design, n_events)
        return lambda theta: every(theta).mean(0)

    def spread(
        self,
        theta: Tensor,
        x: Tensor,
        design: Tensor | None = None,
        *,
        reference: Tensor | None = None,
        n_events: Tensor | None = None,
    ) -> Tensor:
        """Standard deviation over members of f_m(theta, x) - f_m(reference, x), nats, (*).

        Differences only: each f_m has a term without theta of its own. Of the mean of M members the standard error is
        this over sqrt(M).

        Args:
            theta: (*, D).
            x: (*, event).
            design: (*, K).
            reference: (D,) or (*, D); by default the medians of the first member's training rows.
            n_events: events in each x, (*).
        """
        every = self._every(x, design, n_events)
        if reference is None:
            reference = self._members()[0].theta_scaler.shift.to(theta)
        return (every(theta) - every(reference)).std(0)

    @property
    def caveat(self) -> str:
        """Where the members' log likelihood can be believed; empty if they do not limit it."""
        said = dict.fromkeys(getattr(member, "caveat", "") for member in self._members())
        return "; ".join(filter(None, said))

    @property
    def constants(self) -> Tensor:
        """The value of x (event) where it was constant in the training rows of a member, NaN elsewhere, float64."""
        known = torch.stack([member.constants for member in self._members()])
        return torch.where(known.isnan(), -torch.inf, known).amax(0).where(~known.isnan().all(0), torch.nan)

    def _every(self, x: Tensor, design: Tensor | None, n_events: Tensor | None) -> Callable[[Tensor], Tensor]:
        """theta (*, D) -> f_m(theta, x), (M, *)."""
        options = {} if n_events is None else {"n_events": n_events}
        functions = [member.observe(x, design, **options) for member in self._members()]
        return lambda theta: torch.stack([function(theta) for function in functions])

    def _members(self) -> list[Estimator]:
        return list(self.members)  # type: ignore[arg-type]  # torch types the parts of a ModuleList as modules

    def train(self, mode: bool = True) -> Self:
        """Evaluation mode only: members are trained one by one."""
        return super().train(mode) if not mode else self._refuse()

    def adapt(self, rows: Simulations) -> NoReturn:
        """Refuse: members are trained one by one."""
        self._refuse()

    def reset(self) -> NoReturn:
        """Refuse: members are trained one by one."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise InputError(f"Ensemble of {len(self.members)}: train its members one by one, then join them.")

    def describe(self) -> Mapping[str, Any]:
        """Plain data from which `load_estimator` builds the same shapes again."""
        return {"class": type(self).__name__, "members": [member.describe() for member in self._members()]}
