"""The epochs of a training: steps, looks at the held-out rows, and which weights are kept."""

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, reduce
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from tqdm import tqdm

from sbi_core.estimators.batches import Source
from sbi_core.estimators.checkpoints import Checkpoint
from sbi_core.estimators.estimator import Estimator
from sbi_core.estimators.losses import Batch, Loss, name_of
from sbi_core.estimators.ratio import RatioEstimator

CHECKS = 50
"""Looks at the held-out rows in one training, at most so many."""

AVERAGED = 8
"""Weights are averaged over about the last 1/8 of the steps so far."""

LONGEST = 5.0
"""Norm at which gradients are clipped."""

_adam = partial(adam, fused=True, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, amsgrad=False, maximize=False)
"""Kingma & Ba, arXiv:1412.6980. The step of `torch.optim.Adam` takes twice as long for a small network."""

BUDGET, PATIENCE, TROUBLE = "budget", "patience", "trouble"
"""How a training ends."""

Callback = Callable[[Mapping[str, float]], object]
"""Receives the newest line of the history at each look at the held-out rows."""


class Parts(Protocol):
    """What the loop trains on: a `Source`, or a `Stream` of several."""

    clipped: int

    def __len__(self) -> int: ...

    def parts(self) -> Iterator[Source]: ...  # noqa: D102

    def state(self) -> dict[str, Tensor]: ...  # noqa: D102

    def restore(self, state: Mapping[str, Tensor]) -> None: ...  # noqa: D102


@dataclass(frozen=True)
class Plan:
    """How long, how fast and where.

    Attributes:
        epochs: passes over the rows, at most.
        steps: batches in one pass.
        batch_size: rows in one step.
        patience: passes without a better held-out loss after which training stops.
        learning_rate: the highest of the schedule.
        weight_decay: of matrices, not of biases.
        tolerance: standard errors by which a held-out loss must be above the lowest before it counts as worse.
        device: where the network is.
    """

    epochs: int
    steps: int
    batch_size: int
    patience: int
    learning_rate: float
    weight_decay: float
    tolerance: float
    device: torch.device

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0: a short way up, then half a cosine down to zero."""
        total = self.epochs * self.steps
        warm = max(1, total // 20)
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, total - warm))))


class Loop:
    """A network, the running average of its weights, the optimiser and the record; `run` carries on from there.

    The averaged weights are the ones that are looked at, and the latest that are not worse than the best are kept.
    After t steps step s has the weight (s/t)^`AVERAGED`: Karras et al., arXiv:2312.02696, section 3.1. While the
    learning rate is high this does what the end of the schedule would do, so that looks at different epochs compare,
    and training can be stopped at any of them.

    Args:
        model: trained in place.
        loss: (estimator, batch) -> scalar.
        plan: how long and how fast.
        begun: whether the model knows something already; then only weights are kept that are better on the held-out
            rows, by `plan.tolerance` standard errors.
    """

    def __init__(self, model: Estimator, loss: Loss, plan: Plan, *, begun: bool = False) -> None:
        self.model, self.loss, self.plan = model.to(plan.device).train(), loss, plan
        self.average = copy.deepcopy(model).eval()
        self.weights, self.gradients, self.decaying = _laid_out(self.model)
        self.averages = _laid_out(self.average)[0]
        self.moments = [[torch.zeros_like(w) for w in self.weights] for _ in range(2)]
        self.counts = [torch.zeros((), device=plan.device) for _ in self.weights]
        self.steps = self.epoch = self.best_epoch = 0
        self.history: dict[str, list[float]] = {
            name: [] for name in ("epoch", "training", "validation", "learning_rate")
        }
        self.kept = _copied(self.average)
        self.lowest: Tensor | None = None
        self.begun = begun
        self.start: Tensor | None = None
        self.seconds = 0.0

    def run(
        self, rows: Parts, held: Sequence[Batch], *, progress: bool, callback: Callback | None, checkpoint: Checkpoint
    ) -> str:
        """Train until the plan, the patience or the loss is at its end; return which, with the kept weights in `kept`.

        Reads torch's global random state. A checkpoint is offered at the end of each epoch.
        """
        started, before, held = time.perf_counter(), self.seconds, [self._ready(batch) for batch in held]
        every = math.ceil(self.plan.epochs / CHECKS)
        if self.begun and self.epoch == 0:
            losses = self._losses(held)
            if bool(losses.isfinite().all()):
                self.lowest = self.start = losses
        name, total = f"fit {name_of(self.loss)}", self.plan.epochs
        bar = tqdm(total=total, initial=self.epoch, desc=name, unit="epoch", disable=not progress)
        with bar, _flushed():
            while self.epoch < self.plan.epochs and not self.is_stale:
                training = self._pass(rows)
                self.epoch += 1
                self.seconds = before + time.perf_counter() - started
                if self.epoch % every == 0 or self.epoch == self.plan.epochs or not math.isfinite(training):
                    self._look(training, held)
                    if not math.isfinite(training + self.history["validation"][-1]):
                        return TROUBLE
                    if callback is not None:
                        callback({name: column[-1] for name, column in self.history.items()})
                    shown = {name: f"{self.history[name][-1]:.4f}" for name in ("training", "validation")}
                    bar.set_postfix(shown, refresh=False)
                bar.update()
                checkpoint.offer(self, rows)
        return PATIENCE if self.epoch < self.plan.epochs else BUDGET

    @property
    def is_stale(self) -> bool:
        """Whether `patience` epochs have passed without a better held-out loss."""
        looks = self.history["epoch"]
        return bool(looks) and looks[-1] - self.best_epoch >= self.plan.patience

    def _pass(self, rows: Parts) -> float:
        """One epoch; the mean training loss."""
        total, seen = torch.zeros((), device=self.plan.device), 0
        for part in rows.parts():
            batch = self._ready(part.batch())
            for index in torch.randperm(len(part)).split(self.plan.batch_size):
                total += self._step(batch[index.to(self.plan.device)]) * len(index)
            seen += len(part)
        return float(total) / seen

    def _ready(self, batch: Batch) -> Batch:
        batch = batch.to(self.plan.device)
        return self.model.prepared(batch) if isinstance(self.model, RatioEstimator) else batch

    def _step(self, batch: Batch) -> Tensor:
        rate = self.plan.rate(self.steps)
        for gradient in self.gradients:
            gradient.zero_()
        value = self.loss(self.model, batch)
        value.backward()
        with torch.no_grad():
            norm = reduce(torch.hypot, [gradient.norm() for gradient in self.gradients])
            shrink = (norm / LONGEST).clamp(min=1.0).float()
            for decaying in self.decaying:
                decaying *= 1 - rate * self.plan.weight_decay
            first, second = self.moments
            _adam(self.weights, self.gradients, first, second, [], self.counts, grad_scale=shrink, lr=rate)
            for mine, theirs in zip(self.averages, self.weights, strict=True):
                mine.lerp_(theirs, 1 - (1 - 1 / (self.steps + 1)) ** (AVERAGED + 1))
        self.steps += 1
        return value.detach()

    def _look(self, training: float, held: Sequence[Batch]) -> None:
        """Add a line to the history; keep the averaged weights unless earlier ones were better."""
        for mine, theirs in zip(self.average.buffers(), self.model.buffers(), strict=True):
            mine.copy_(theirs)
        losses = self._losses(held)
        line = (self.epoch, training, float(losses.mean()), self.plan.rate(self.steps - 1))
        for column, value in zip(self.history.values(), line, strict=True):
            column.append(value)
        if not bool(losses.isfinite().all()):
            return
        if self.lowest is None or losses.mean() < self.lowest.mean():
            self.lowest = losses
        gained = self.start is None or _worse(self.start - losses, self.plan.tolerance)
        if gained and not _worse(losses - self.lowest, self.plan.tolerance):
            self.kept = _copied(self.average)
            self.best_epoch = self.epoch

    def _losses(self, held: Sequence[Batch]) -> Tensor:
        """Of the averaged weights, one to a slice of the held-out rows."""
        with torch.no_grad():
            return torch.stack([self.loss(self.average, batch).detach() for batch in held]).double().cpu()


def _laid_out(model: nn.Module) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Lay the weights of a model end to end, so that a step takes few operations: one parameter of each dtype.

    Second, their gradients; third, the matrices, which come first: what decays.
    """
    weights: list[Tensor] = []
    gradients, decaying = [], []
    trained = sorted((p for p in model.parameters() if p.requires_grad), key=lambda p: p.ndim < 2)
    for dtype in dict.fromkeys(p.dtype for p in trained):
        parts = [p for p in trained if p.dtype == dtype]
        vector = nn.Parameter(nn.utils.parameters_to_vector(parts).detach())
        nn.utils.vector_to_parameters(vector.detach(), parts)
        vector.grad = torch.zeros_like(vector)
        for part, gradient in zip(parts, vector.grad.split([p.numel() for p in parts]), strict=True):
            part.grad = gradient.view_as(part)
        weights.append(vector)
        gradients.append(vector.grad)
        decaying.append(vector.detach()[: sum(p.numel() for p in parts if p.ndim > 1)])
    return weights, gradients, decaying


@contextmanager
def _flushed() -> Iterator[None]:
    """Take numbers below 1e-38 for zero: far contrasts fill gradients with them, and products then cost five times."""
    before = not bool(torch.tensor(1e-40) * 1)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def _worse(difference: Tensor, tolerance: float) -> bool:
    """Whether losses of slices are above others by so many standard errors of the mean difference."""
    error = difference.std() / len(difference) ** 0.5 if len(difference) > 2 else 0.0
    return bool(difference.mean() > tolerance * error)


def _copied(model: Estimator) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}
