"""Losses, a few lines each, named after their papers: (estimator, batch) -> scalar.

With rows (theta, x, z) ~ p(x, z | theta) and contrasts theta' from the same proposal, the logit of "drawn at theta
rather than theta'" is f(theta, x) - f(theta', x). Losses work on logits, so nothing overflows.

The place of the other methods: one function here, one yaml in conf/loss/, one row in tests/estimators/test_losses.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from sbi_core.estimators.estimator import Estimator

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
        score_scale: root mean square of the joint score on the training rows, (D,).
    """

    theta: Tensor
    x: Tensor
    design: Tensor | None = None
    theta_alt: Tensor | None = None
    joint_log_ratio: Tensor | None = None
    joint_score: Tensor | None = None
    score_scale: Tensor | None = None

    def __len__(self) -> int:
        return len(self.theta)

    def __getitem__(self, index: Any) -> "Batch":
        """Rows by index tensor or slice."""
        return self._map(lambda name, value: value if name == "score_scale" else value[index])

    def to(self, device: Any) -> "Batch":
        """The same on a device."""
        return self._map(lambda name, value: value.to(device))

    def _map(self, change: Callable[[str, Tensor], Tensor]) -> "Batch":
        pairs = ((f.name, getattr(self, f.name)) for f in fields(self))
        return replace(self, **{name: change(name, value) for name, value in pairs if value is not None})


def needs(*columns: str) -> Callable[[Loss], Loss]:
    """Say which columns of a `Batch` a loss reads beyond theta and x."""

    def mark(loss: Loss) -> Loss:
        loss.needs = columns  # type: ignore[attr-defined]
        return loss

    return mark


@needs("theta_alt")
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
def alices(estimator: Estimator, batch: Batch, *, alpha: float = 0.1) -> Tensor:
    """`alice` plus alpha times the squared error of grad_theta f against the joint score, ().

    The score term is divided, parameter by parameter, by the root mean square of the joint score on the training
    rows, so alpha has no unit. Stoye et al., arXiv:1808.00973, eq. 9.
    """
    theta = batch.theta.detach().requires_grad_()
    with torch.enable_grad():
        logits, value = _logits_and_value(estimator, batch, theta)
        score = torch.autograd.grad(value.sum(), theta, create_graph=True)[0]
    assert batch.joint_score is not None and batch.score_scale is not None  # `needs` says so
    error = (score - batch.joint_score) / batch.score_scale
    return _soft_cross_entropy(logits, batch) + alpha * (error**2).sum(-1).mean()


def _logits(estimator: Estimator, batch: Batch) -> Tensor:
    return _logits_and_value(estimator, batch, batch.theta)[0]


def _logits_and_value(estimator: Estimator, batch: Batch, theta: Tensor) -> tuple[Tensor, Tensor]:
    """f(theta, x) - f(theta_alt, x), (B, C), and f(theta, x), (B,), from one pass of the network."""
    assert batch.theta_alt is not None  # `needs` says so
    together = torch.cat([theta[:, None], batch.theta_alt], 1)
    design = None if batch.design is None else batch.design[:, None]
    value = estimator.log_likelihood(together, batch.x[:, None], design)
    return value[:, :1] - value[:, 1:], value[:, 0]


def _soft_cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    assert batch.joint_log_ratio is not None  # `needs` says so
    label = torch.sigmoid(batch.joint_log_ratio)
    return (label * softplus(-logits) + (1 - label) * softplus(logits)).mean()
