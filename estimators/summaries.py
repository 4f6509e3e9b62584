"""The score at theta_ref as a summary of x: what is fitted to it, and the two joined."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from sbi_core.errors import InputError
from sbi_core.estimators.estimator import Estimator, joined
from sbi_core.estimators.networks import mlp, reset
from sbi_core.estimators.score import ScoreEstimator
from sbi_core.gold import joint_log_ratio, joint_score
from sbi_core.parameters import Parameter, names
from sbi_core.seeding import block_seed, seeded
from sbi_core.simulations import Rows, Simulations
from sbi_core.simulator import Simulator


def summarise(
    estimator: ScoreEstimator,
    data: Rows,
    *,
    simulator: Simulator | None = None,
    contrasts: Distribution | None = None,
    per_row: int = 10,
    seed: int = 0,
) -> Simulations:
    """The same rows with s(x) (N, D) in the place of x, for any estimator to be trained on.

    Near theta_ref, s(x) is sufficient (Brehmer et al., arXiv:1805.00020, section III). The gold of (x, z) is gold of
    (s(x), z) as well, since E[r(x, z) | s] = r(s); but as log_joint cannot read s(x), it is stored and z left out.

    Args:
        estimator: a trained score.
        data: N rows of any thetas.
        simulator: where gold comes from: joint scores, and joint ratios against `per_row` contrasts.
        contrasts: density of the contrasts, event shape (D,); by default the recorded proposal, if there is one.
        per_row: contrasts for each row, C.
        seed: fixes the contrasts.

    Raises:
        InputError: for a score that is not trained.
        MissingGold: if the simulator has no `log_joint`, or the rows no z that it needs.
    """
    if not estimator.trained:
        raise InputError("summarise: the score is not trained. Give the estimator of a finished fit.")
    rows = data[:].reordered(estimator.axes, estimator.designs)
    gold: dict[str, Any] = {}
    if simulator is not None:
        gold["joint_score"] = joint_score(simulator, rows)
        density = rows.info.proposal if contrasts is None else contrasts
        if density is not None:
            with seeded(block_seed(seed, 5)):
                alt = density.sample(torch.Size([len(rows), per_row])).double()
            ratios = [joint_log_ratio(simulator, rows, rows.theta, alt[:, k]) for k in range(per_row)]
            gold |= {"theta_alt": alt, "joint_log_ratio": torch.stack(ratios, 1)}
    info = replace(rows.info, categories=None)
    return replace(rows, x=estimator.score_of(rows), info=info, z=None, n_events=None, **gold)


class DirectionEstimator(Estimator):
    """Sallino: log p(h | theta) / p(h | theta_ref) of the one number h = s . (theta - theta_ref), where x is s.

    With rows of theta_ref, E_ref[r(x, z | theta, theta_ref) | h] = p(h | theta) / p(h | theta_ref), so `rolr` on the
    rows of `summarise`, simulated at theta_ref, learns it: one network of h and theta, whatever the number of
    parameters. Brehmer et al., arXiv:1805.00020, section III. Each theta is told from theta_ref by a statistic of its
    own, which is sufficient near theta_ref only.

    Args:
        parameters: the D axes of theta.
        x_shape: (D,), that of the score.
        theta_ref: where the score was taken, (D,).
        designs: the K axes of the design.
        categories: none; x is a score.
        hidden: widths of the hidden layers.

    Raises:
        InputError: for an x that is no score, or a theta_ref of another length.
    """

    learned_by = ("rolr", "rascal")
    theta_ref: Tensor

    def __init__(
        self,
        parameters: Sequence[Parameter],
        x_shape: Sequence[int],
        *,
        theta_ref: Any,
        designs: Sequence[Parameter] = (),
        categories: None = None,
        hidden: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__(parameters, x_shape, designs=designs)
        at = torch.as_tensor(theta_ref, dtype=torch.float64)
        if at.shape != (len(self.axes),) or self.x_shape != (len(self.axes),):
            raise InputError(
                f"theta_ref = {theta_ref} and x of shape {self.x_shape}: expected {len(self.axes)} numbers each, for "
                f"{names(self.axes)}. Train it on the rows of summarise(score, data)."
            )
        self.options = {"theta_ref": at.tolist(), "hidden": list(hidden)}
        self.register_buffer("theta_ref", at)
        with seeded(0):
            self.network = mlp(1 + len(self.axes) + len(self.designs), hidden, 1)

    @property
    def caveat(self) -> str:
        """Where it can be believed."""
        return f"each theta is told from theta_ref = {self.theta_ref.tolist()} by one number, sufficient near it only"

    def reset(self) -> None:
        """Draw new initial weights from torch's global random state."""
        reset(self.network)

    def adapt(self, rows: Simulations) -> list[str]:
        """Fit the scaling to training rows and their contrasts; return a flag for constant columns."""
        assert rows.theta_alt is not None  # what `learned_by` names needs joint ratios
        flags = super().adapt(rows)
        self.theta_scaler.adapt(rows.theta_alt.flatten(0, 1))
        return flags

    def observe(
        self, x: Tensor, design: Tensor | None = None, *, n_events: Tensor | None = None
    ) -> Callable[[Tensor], Tensor]:
        """Take x (*, D) and return the function theta (*, D) -> nats (*)."""
        self._check_x(x)

        def log_likelihood(theta: Tensor) -> Tensor:
            given = self._conditions(theta, design)
            h = (x.double() * (theta.double() - self.theta_ref)).sum(-1, keepdim=True)
            beyond: Tensor = self.network(joined([torch.asinh(h).to(given[0]), *given]))  # what h itself leaves out
            return (h + beyond)[..., 0]

        return log_likelihood


class SummaryEstimator(Estimator):
    """log p(s(x) | theta, design) up to a term without theta: a score, and what was fitted to it, read as one.

    Args:
        parts: a trained `ScoreEstimator`, and an estimator trained on the rows that `summarise` made with it.

    Raises:
        InputError: if they do not belong together, or one is untrained.
    """

    def __init__(self, parts: Sequence[Estimator]) -> None:
        score, density = parts
        if not isinstance(score, ScoreEstimator):
            raise InputError(f"parts[0] is {type(score).__name__}, expected a ScoreEstimator.")
        super().__init__(
            score.axes, score.x_shape, designs=score.designs, categories=score.categories, counted=score.counted
        )
        wanted = (score.axes, score.designs, (len(score.axes),))
        if (density.axes, density.designs, density.x_shape) != wanted:
            raise InputError(
                f"parts[1] has parameters {names(density.axes)}, designs {names(density.designs)} and x of shape "
                f"{density.x_shape}; expected {names(score.axes)}, {names(score.designs)} and {wanted[2]}. Train it on "
                "the rows of summarise(score, data)."
            )
        for number, part in enumerate(parts):
            if not part.trained:
                raise InputError(f"parts[{number}] is not trained. Give the estimator of a finished fit.")
        self.parts = nn.ModuleList(parts)
        self.familiar = score.familiar
        if self.counted:
            self.always_full.copy_(score.always_full)
        self.trained.fill_(True)
        self.eval()

    @property
    def caveat(self) -> str:
        """Where information is lost."""
        score, density = self._parts()
        own = f"x is read through its score at theta_ref = {score.theta_ref.tolist()}: information is lost far from it"
        return "; ".join(filter(None, [own, getattr(density, "caveat", "")]))

    @property
    def constants(self) -> Tensor:
        """The value of x (event) where it was constant in the score's training rows, NaN elsewhere, float64."""
        return self._parts()[0].constants

    def observe(
        self, x: Tensor, design: Tensor | None = None, *, n_events: Tensor | None = None
    ) -> Callable[[Tensor], Tensor]:
        """Take the score of x (*, event), n_events (*), once: the function theta (*, D) -> nats (*)."""
        score, density = self._parts()
        return density.observe(score.score(x, design, n_events=n_events), design)

    def _parts(self) -> tuple[ScoreEstimator, Estimator]:
        return tuple(self.parts)  # type: ignore[return-value]  # torch types the parts of a ModuleList as modules

    def train(self, mode: bool = True) -> Self:
        """Evaluation mode only: the two are trained one after the other."""
        return super().train(mode) if not mode else self._refuse()

    def adapt(self, rows: Simulations) -> NoReturn:
        """Refuse: the two are trained one after the other."""
        self._refuse()

    def reset(self) -> NoReturn:
        """Refuse: the two are trained one after the other."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise InputError("SummaryEstimator: train the score, then a density on summarise(score, data), then join them.")

    def describe(self) -> Mapping[str, Any]:
        """Plain data from which `load_estimator` builds the same shapes again."""
        return {"class": type(self).__name__, "members": [part.describe() for part in self._parts()]}
