"""Losses, a few lines each, named after their papers: (estimator, batch) -> scalar.

With rows (theta, x, z) ~ p(x, z | theta) and contrasts theta' from the same proposal, the logit of "drawn at theta
rather than theta'" is f(theta, x) - f(theta', x). Losses work on logits, so nothing overflows.

The place of the other methods: one function here, one yaml in conf/loss/, one row in tests/estimators/test_losses.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from sbi_core.errors import TrainingError
from sbi_core.estimators.estimator import Estimator
from sbi_core.estimators.posterior import PosteriorEstimator
from sbi_core.estimators.ratio import RatioEstimator
from sbi_core.estimators.score import ScoreEstimator

LARGEST_LOG_RATIO = 30.0
"""Joint log ratios beyond this are clipped where the ratio itself is regressed on."""

Loss = Callable[..., Tensor]
"""(estimator, batch) -> scalar, with keyword-only options."""


@dataclass(frozen=True)
class Batch:
    """What a loss may read.

    Attributes:
        theta: (B, D).
        x: (B, ...).
        design: (B, K).
        theta_alt: contrasts, (B, C, D).
        joint_log_ratio: log p(x, z | theta) - log p(x, z | theta_alt), (B, C).
        joint_score: at theta, (B, D).
        score_weight: w(theta) of the score term, (B,).
        whitening: W of the score term, (D, D).
        n_events: events in each row, (B,).
        seen: what the ratio head's network reads of x, (B, features), where the loop has scaled x already.
    """

    theta: Tensor
    x: Tensor
    design: Tensor | None = None
    theta_alt: Tensor | None = None
    joint_log_ratio: Tensor | None = None
    joint_score: Tensor | None = None
    score_weight: Tensor | None = None
    whitening: Tensor | None = None
    n_events: Tensor | None = None
    seen: Tensor | None = None

    def __len__(self) -> int:
        return len(self.theta)

    def __getitem__(self, index: Any) -> "Batch":
        """Rows by index tensor (m,) or slice."""

        def rows(name: str, value: Tensor) -> Tensor:
            if name == "whitening":
                return value
            return value.index_select(0, index) if isinstance(index, Tensor) else value[index]

        return self._map(rows)

    def to(self, device: Any) -> "Batch":
        """The same on a device."""
        return self._map(lambda name, value: value.to(device))

    def _map(self, change: Callable[[str, Tensor], Tensor]) -> "Batch":
        changed = {name: change(name, value) for name, value in vars(self).items() if value is not None}
        return Batch(**changed)


def needs(
    *columns: str, clips: bool = False, density: str = "", contrasts: int = 2, learning_rate: float = 3e-3
) -> Callable[[Loss], Loss]:
    """Say what a loss reads and wants.

    Args:
        columns: of a `Batch`, beyond theta and x.
        clips: whether it clips joint ratios.
        density: what the estimator must be a normalised density of, "x" or "theta"; "score" if it must be a score.
        contrasts: how many contrasts to a row serve it well by default.
        learning_rate: the highest of the schedule that serves it well by default.
    """

    def mark(loss: Loss) -> Loss:
        vars(loss).update(needs=columns, clips=clips, density=density, contrasts=contrasts, learning_rate=learning_rate)
        return loss

    return mark


def function_of(loss: Loss) -> Loss:
    """The function behind a `partial`."""
    return loss.func if isinstance(loss, partial) else loss


def columns_of(loss: Loss) -> tuple[str, ...]:
    """What a loss reads of a batch beyond theta and x: with a weight alpha, the joint score."""
    columns: tuple[str, ...] = getattr(function_of(loss), "needs", ("theta_alt",))
    weighted = isinstance(loss, partial) and bool(loss.keywords.get("alpha")) and "joint_log_ratio" in columns
    return (*columns, "joint_score") if weighted and "joint_score" not in columns else columns


def name_of(loss: Loss) -> str:
    """What messages and records call a loss."""
    function = function_of(loss)
    return getattr(function, "__name__", type(function).__name__)


def check_head(loss: Loss, head: type[Estimator]) -> None:
    """Raise `TrainingError` if a loss needs a density, or a score, that a class of estimators is not."""
    wanted = getattr(function_of(loss), "density", "")
    local = "score" in (wanted, head.normalized) and wanted != head.normalized
    if local or name_of(loss) not in getattr(head, "learned_by", [name_of(loss)]):
        raise TrainingError(
            f"loss {name_of(loss)} does not go with {head.__name__}: sally learns a ScoreEstimator (estimator=score) "
            "and nothing else, which nothing else learns, and rolr or rascal a DirectionEstimator."
        )
    if wanted and wanted != head.normalized:
        name = {"x": "likelihood", "theta": "posterior"}[wanted]
        raise TrainingError(
            f"loss {name_of(loss)} needs a density of {wanted}, and {head.__name__} is none: nothing would bound it. "
            f"Use estimator={name} ({name.capitalize()}Estimator), or another loss."
        )


@needs("theta_alt", learning_rate=1e-2)
def carl(estimator: Estimator, batch: Batch) -> Tensor:
    """Cross entropy with hard labels: mean of softplus(f(theta', x) - f(theta, x)), ().

    Needs no gold. Cranmer, Pavez & Louppe, arXiv:1506.02169, in the difference form: (theta, theta') is exchangeable,
    so the term with the labels swapped is the same in expectation.
    """
    return softplus(-_logits(estimator, batch)).mean()


@needs("theta_alt", "joint_log_ratio")
def alice(estimator: Estimator, batch: Batch) -> Tensor:
    """Cross entropy with soft labels s = sigmoid(log r(x, z | theta, theta')), ().

    Mean of s softplus(-logit) + (1 - s) softplus(logit); Stoye, Brehmer, Louppe, Pavez & Cranmer, arXiv:1808.00973,
    eq. 7. Bounded gradients however extreme the joint ratio.
    """
    return _soft_cross_entropy(_logits(estimator, batch), batch)


@needs("theta_alt", "joint_log_ratio", "joint_score")
def alices(estimator: Estimator, batch: Batch, *, alpha: float = 1.0) -> Tensor:
    """`alice` plus alpha times the error of grad_theta f against the joint score, ().

    The score term is the mean of w(theta) |W (grad_theta f - t)|^2. W (D, D) whitens the joint score and w takes out
    how its size changes with theta, both as measured on the training rows, so alpha has no unit, no corner of theta
    dominates, and f = 0 gives D. It is a sum over the D components, as is the information they carry: in ten
    dimensions their mean left the score too little weight. Stoye et al., arXiv:1808.00973, eq. 9.
    """
    logits, error = _logits_and_score_error(estimator, batch)
    return _soft_cross_entropy(logits, batch) + alpha * error


@needs("theta_alt", "joint_score")
def cascal(estimator: Estimator, batch: Batch, *, alpha: float = 1.0) -> Tensor:
    """`carl` plus alpha times the score term of `alices`, (). Brehmer et al., arXiv:1805.00020, section III."""
    logits, error = _logits_and_score_error(estimator, batch)
    return softplus(-logits).mean() + alpha * error


@needs("theta_alt", "joint_log_ratio", clips=True)
def rolr(estimator: Estimator, batch: Batch) -> Tensor:
    """Squared error of r_hat = exp(f(theta', x) - f(theta, x)) against the joint ratio r(x, z | theta', theta), ().

    Mean of w (r_hat - r)^2 with w = (1 + r_hat)^-2 held constant in the gradient: it depends on theta, theta' and x
    alone, so the minimum stays where it is, and ratios far above 1 do not drown the others. The row's own theta is in
    the denominator only, so theta' needs no exchangeability, but a finite second moment of r: near contrasts. Joint
    log ratios are clipped at `LARGEST_LOG_RATIO`, and `fit` flags how many were. Brehmer et al., arXiv:1805.00020,
    section III.
    """
    return _ratio_error(_logits(estimator, batch), batch)


@needs("theta_alt", "joint_log_ratio", "joint_score", clips=True)
def rascal(estimator: Estimator, batch: Batch, *, alpha: float = 1.0) -> Tensor:
    """`rolr` plus alpha times the score term of `alices`, (). Brehmer et al., arXiv:1805.00020, section III."""
    logits, error = _logits_and_score_error(estimator, batch)
    return _ratio_error(logits, batch) + alpha * error


@needs("theta_alt", contrasts=9, learning_rate=1e-2)
def nre(estimator: Estimator, batch: Batch) -> Tensor:
    """Which of 1 + C thetas made x: minus the mean of log softmax(f(theta_k, x))_0, the row's own theta first, ().

    Needs no gold; `carl` is the case C = 1. Durkan, Murray & Papamakarios, arXiv:2002.03712, section 3.
    """
    return -torch.log_softmax(_values(estimator, batch), 1)[:, 0].mean()


@needs("theta_alt", "joint_log_ratio", contrasts=9, learning_rate=1e-2)
def nre_gold(estimator: Estimator, batch: Batch, *, alpha: float = 0.0) -> Tensor:
    """`nre` with soft labels p(x, z | theta_k) / sum_j p(x, z | theta_j) from the joint ratios, ().

    Given the set of thetas that is the probability that each of them made the row; `alice` is the case C = 1. As C
    grows, this becomes the cross entropy of the posterior of theta. For the labels see `alice`. With alpha above 0
    alpha times the score term of `alices` is added: where the labels of far contrasts are all but hard, it is the
    score that makes small errors of f, which add up over many observations, small.
    """
    assert batch.joint_log_ratio is not None  # `needs` says so
    if alpha:
        logits, error = _logits_and_score_error(estimator, batch)
        value = torch.cat([torch.zeros_like(logits[:, :1]), -logits], 1)
    else:
        value = _values(estimator, batch)
    joint = torch.cat([torch.zeros_like(batch.joint_log_ratio[:, :1]), (-batch.joint_log_ratio).clamp(max=1e4)], 1)
    entropy = -(torch.softmax(joint, 1) * torch.log_softmax(value, 1)).sum(1).mean()
    return entropy + alpha * error if alpha else entropy


@needs(density="x")
def nle(estimator: Estimator, batch: Batch) -> Tensor:
    """Minus the mean of log q(x | theta), (): maximum likelihood for a head that is normalised in x.

    Needs no gold. Papamakarios, Sterratt & Murray, arXiv:1805.07226, eq. 4.
    """
    return -estimator.log_likelihood(batch.theta, batch.x, batch.design, **_counts(batch)).mean()


@needs("joint_score", density="x")
def scandal(estimator: Estimator, batch: Batch, *, alpha: float = 1.0) -> Tensor:
    """`nle` plus alpha times the score term of `alices`, (). Brehmer et al., arXiv:1805.00020, section III."""
    theta = batch.theta.detach().requires_grad_()
    with torch.enable_grad():
        value = estimator.log_likelihood(theta, batch.x, batch.design, **_counts(batch))
        score = torch.autograd.grad(value.sum(), theta, create_graph=True)[0]
    return -value.mean() + alpha * score_error(score, batch)


@needs("joint_score", density="score")
def sally(estimator: ScoreEstimator, batch: Batch) -> Tensor:
    """Error of the score s(x) at theta_ref against the joint score there: mean of w |W (s(x) - t)|^2, ().

    E[t(x, z) | x] = grad log p(x | theta_ref) for rows of theta_ref, or with weights w that stand for such rows. W
    (D, D) whitens t, so the loss has no unit. Brehmer et al., arXiv:1805.00020, section III.
    """
    return score_error(estimator.score(batch.x, batch.design, **_counts(batch)), batch)


@needs(density="theta")
def npe(estimator: Estimator, batch: Batch) -> Tensor:
    """Minus the mean of log q(theta | x), (): maximum likelihood for a head that is normalised in theta.

    Needs no gold. Papamakarios & Murray, arXiv:1605.06376, eq. 5.
    """
    assert isinstance(estimator, PosteriorEstimator)  # `fit` made sure
    return -estimator.log_posterior(batch.theta, batch.x, batch.design, n_events=batch.n_events).mean()


def _observe(estimator: Estimator, batch: Batch) -> Callable[[Tensor], Tensor]:
    """theta (B, k, D) -> f(theta, x), (B, k); x is looked at once."""
    design = None if batch.design is None else batch.design[:, None]
    if batch.seen is not None and isinstance(estimator, RatioEstimator):
        return estimator.look(batch.seen[:, None], design)
    return estimator.observe(batch.x[:, None], design, **{k: n[:, None] for k, n in _counts(batch).items()})


def _counts(batch: Batch) -> dict[str, Tensor]:
    """`n_events` (B,) where rows are runs of events: heads that never read such need not know of it."""
    return {} if batch.n_events is None else {"n_events": batch.n_events}


def _values(estimator: Estimator, batch: Batch) -> Tensor:
    """f(theta, x) and f(theta_alt, x), (B, 1 + C), from one pass of the network."""
    assert batch.theta_alt is not None  # `needs` says so
    return _observe(estimator, batch)(torch.cat([batch.theta[:, None], batch.theta_alt], 1))


def _logits(estimator: Estimator, batch: Batch) -> Tensor:
    """f(theta, x) - f(theta_alt, x), (B, C)."""
    value = _values(estimator, batch)
    return value[:, :1] - value[:, 1:]


def _logits_and_score_error(estimator: Estimator, batch: Batch) -> tuple[Tensor, Tensor]:
    """f(theta, x) - f(theta_alt, x), (B, C), and the score term, ()."""
    assert batch.theta_alt is not None  # `needs` says so
    theta = batch.theta.detach().requires_grad_()
    with torch.enable_grad():
        function = _observe(estimator, batch)
        here = function(theta[:, None])
        score = torch.autograd.grad(here.sum(), theta, create_graph=True)[0]
    return here - function(batch.theta_alt), score_error(score, batch)


def score_error(score: Tensor, batch: Batch) -> Tensor:
    """Mean of w(theta) |W (score - t)|^2 over the batch, (); score (B, D)."""
    assert batch.joint_score is not None and batch.whitening is not None and batch.score_weight is not None
    error = (score - batch.joint_score) @ batch.whitening.T
    return (batch.score_weight * error.square().sum(-1)).mean()


def _ratio_error(logits: Tensor, batch: Batch) -> Tensor:
    assert batch.joint_log_ratio is not None  # `needs` says so
    joint = (-batch.joint_log_ratio).clamp(max=LARGEST_LOG_RATIO)
    scale = softplus(-logits).detach()
    return ((torch.exp(-logits - scale) - torch.exp(joint - scale)) ** 2).mean()


def _soft_cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    assert batch.joint_log_ratio is not None  # `needs` says so
    label = torch.sigmoid(batch.joint_log_ratio)
    return (label * softplus(-logits) + (1 - label) * softplus(logits)).mean()
