"""The one training loop."""

import copy
import math
import time
import warnings
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from numpy.random import SeedSequence
from torch import Tensor
from tqdm import tqdm

from sbi_core.errors import SbiWarning, TrainingError
from sbi_core.estimators.batches import Source, check_rows, prepare
from sbi_core.estimators.estimator import Estimator
from sbi_core.estimators.losses import LARGEST_LOG_RATIO, Batch, Loss, function_of, name_of
from sbi_core.gold_check import GoldCheck
from sbi_core.seeding import fresh_seed, one_thread, seeded, torch_generator
from sbi_core.simulations import Rows
from sbi_core.simulator import Simulator

STEPS, EPOCHS = 2000, 50
"""Default length of training: at least so many steps and so many passes over the rows."""

CHECKS = 100
"""Looks at the held-out rows in one training, at most about so many."""

SLICES = 10
"""Parts of the held-out rows whose losses give the validation loss its standard error."""

WORSE = 3.0
"""Standard errors by which a validation loss must be worse before it counts (nine degrees of freedom)."""


@dataclass(frozen=True)
class Fit:
    """A finished training.

    Attributes:
        estimator: the trained copy, in evaluation mode, on the CPU.
        loss: the loss's name.
        history: per epoch: epoch, training, validation (losses), learning_rate.
        best_epoch: the epoch whose weights were kept.
        seed: fixes split, initial weights, batches and contrasts.
        flags: what a careful reader should know, in sentences.
        gold: the gold check made before training; `None` if none was made.
        seconds: wall time.
        rows: training rows and held-out rows.
    """

    estimator: Estimator
    loss: str
    history: dict[str, list[float]]
    best_epoch: int
    seed: int
    flags: tuple[str, ...]
    gold: GoldCheck | None
    seconds: float
    rows: tuple[int, int]


def fit(
    estimator: Estimator,
    loss: Loss,
    data: Rows,
    *,
    simulator: Simulator | None = None,
    seed: int | None = None,
    max_epochs: int | None = None,
    batch_size: int | None = None,
    validation_fraction: float = 0.1,
    patience: int | None = None,
    learning_rate: float = 3e-3,
    contrasts: int = 2,
    device: str | torch.device = "cpu",
    progress: bool = True,
    gold_check: bool = True,
    invalid: str = "error",
) -> Fit:
    """Train a copy of an estimator.

    AdamW with a cosine schedule that ends at zero, weight decay 500 / rows (at most 1), gradients clipped at norm 5,
    float32 network and float64 gold. The annealed last weights are kept, unless the held-out rows say by three
    standard errors that an earlier epoch was better; training stops early once they have said so for `patience`
    epochs. Contrasts theta_alt (N, C, D) are drawn from the recorded proposal (else from the other rows' theta),
    afresh at every visit of a row, with the joint log ratio from the simulator's `log_joint`, and the row's own theta
    is drawn again among them (see `Source`); stored contrasts serve where z or the simulator is absent.

    Args:
        estimator: what to train; it is not changed. One that is untrained gets new weights and scaling.
        loss: (estimator, batch) -> scalar, such as `alices` or `partial(alices, alpha=0.3)`.
        data: simulations, or a store.
        simulator: where gold comes from.
        seed: fixes everything random; `None` draws one and records it.
        max_epochs: passes over the rows; by default 50, and at least 2000 steps.
        batch_size: rows per step; by default a twentieth of the rows, from 128 to 512. A posterior of many events needs
            f to be right to a fraction of 1 / events, and fewer steps do not get there.
        validation_fraction: share of rows held out, above 0 and below 1.
        patience: epochs; a fifth of `max_epochs` by default.
        learning_rate: the highest of the schedule.
        contrasts: contrasts per row and visit.
        device: where the network is trained.
        progress: whether to show a bar.
        gold_check: whether to test the gold first and stop if it is wrong.
        invalid: "drop" trains without rows whose x is not finite; "error" refuses them.

    Raises:
        InputError: for rows that cannot be used.
        MissingGold: if the loss needs gold that neither data nor simulator have.
        GoldError: if the gold is wrong.
        TrainingError: for an unusable option, or a loss that is not finite.
    """
    started = time.perf_counter()
    seed = fresh_seed() if seed is None else seed
    _check_options(batch_size, validation_fraction, learning_rate, max_epochs, patience, contrasts)
    rows, flags = check_rows(data[:].reordered(estimator.axes, estimator.designs), invalid)
    name = name_of(loss)
    check_head(loss, type(estimator))
    root = SeedSequence(seed)
    for_split, for_weights, for_training, for_validation = root.spawn(4)
    order = torch.randperm(len(rows), generator=torch_generator(for_split))
    batch_size = batch_size or min(max(len(rows) // 20, 128), 512)
    held_out = min(max(round(validation_fraction * len(rows)), 1), len(rows) - 1)
    source, gold = prepare(loss, rows, simulator, contrasts=contrasts, check=gold_check, seed=seed)
    training = source.part(order[held_out:])
    validation = source.part(order[:held_out], training.score_scale)

    model = copy.deepcopy(estimator)
    if not model.trained:
        with seeded(for_weights):
            model.reset()
        flags += model.adapt(rows[order[held_out:]])
    model.to(device).train()
    steps = math.ceil(len(training) / batch_size)
    epochs = max_epochs or max(EPOCHS, math.ceil(STEPS / steps))
    run = _Run(model, loss, learning_rate, epochs * steps, min(1.0, 500 / len(training)), str(device), name)
    with seeded(for_validation):
        held = validation.batch().to(device)
    with seeded(for_training), one_thread():
        history, best = _epochs(run, training, held, epochs, batch_size, patience or max(1, epochs // 5), progress)
    if history["epoch"][-1] < epochs:
        flags.append(f"training stopped early after {history['epoch'][-1]} of {epochs} epochs: held-out loss rose")
    if training.clipped:
        flags.append(
            f"joint ratios above e^{LARGEST_LOG_RATIO:.0f} in {training.clipped} of {len(training)} rows were clipped, "
            f"which biases {name}: draw contrasts near each row's theta, or use loss=alice"
        )
    for flag in flags:
        warnings.warn(flag, SbiWarning, stacklevel=2)
    model.trained.fill_(True)
    model.to("cpu").eval()
    model.provenance = {
        "loss": name,
        "seed": seed,
        "rows": [len(training), len(validation)],
        "simulator": rows.info.simulator,
        "campaign_seed": rows.info.seed,
        "flags": list(flags),
    }
    return Fit(
        model,
        name,
        history,
        best,
        seed,
        tuple(flags),
        gold,
        time.perf_counter() - started,
        (len(training), len(validation)),
    )


def check_head(loss: Loss, head: type[Estimator]) -> None:
    """Raise `TrainingError` if a loss needs a density that a class of estimators is not."""
    wanted = getattr(function_of(loss), "density", "")
    if wanted and wanted != head.normalized:
        name = {"x": "likelihood", "theta": "posterior"}[wanted]
        raise TrainingError(
            f"loss {name_of(loss)} needs a density of {wanted}, and {head.__name__} is none: nothing would bound it. "
            f"Use estimator={name} ({name.capitalize()}Estimator), or another loss."
        )


class _Run:
    """Network, optimiser and schedule."""

    def __init__(
        self, model: Estimator, loss: Loss, rate: float, steps: int, decay: float, device: str, name: str
    ) -> None:
        self.model, self.loss, self.device, self.name = model, loss, device, name
        matrices = [p for p in model.parameters() if p.ndim > 1]
        rest = [p for p in model.parameters() if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=rate, fused=True)
        warm = max(1, steps // 20)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda k: (k + 1) / warm if k < warm else 0.5 * (1 + math.cos(math.pi * (k - warm) / max(1, steps - warm))),
        )

    @property
    def rate(self) -> float:
        return float(self.schedule.get_last_lr()[0])

    def step(self, batch: Batch) -> Tensor:
        self.optimizer.zero_grad()
        value = self.loss(self.model, batch)
        value.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self.optimizer.step()
        self.schedule.step()
        return value.detach()

    def losses(self, held: Batch) -> Tensor:
        """Losses of the held-out slices, (SLICES,)."""
        self.model.eval()
        slices = [s for s in torch.arange(len(held)).tensor_split(SLICES) if len(s)]
        with torch.no_grad():
            found = torch.stack([self.loss(self.model, held[s.to(held.theta.device)]).detach() for s in slices])
        self.model.train()
        return found.cpu().double()


def _epochs(
    run: _Run, source: Source, held: Batch, epochs: int, batch_size: int, patience: int, progress: bool
) -> tuple[dict[str, list[float]], int]:
    """Run the epochs; leave the kept weights in the model."""
    history: dict[str, list[float]] = {"epoch": [], "training": [], "validation": [], "learning_rate": []}
    best_losses, best_weights, best_epoch, worse_for = None, {}, 0, 0
    every = max(1, epochs // CHECKS)
    bar = tqdm(range(1, epochs + 1), desc=f"fit {run.name}", unit="epoch", disable=not progress)
    for epoch in bar:
        total = 0.0
        rate = run.rate
        batch = source.batch().to(run.device)
        for index in torch.randperm(len(source)).split(batch_size):
            total += float(run.step(batch[index.to(run.device)])) * len(index)
        if not math.isfinite(total):
            _give_up(run.name, epoch, rate)
        if epoch % every and epoch < epochs:
            continue
        losses = run.losses(held)
        validation = float(losses.mean())
        if not math.isfinite(validation):
            _give_up(run.name, epoch, rate)
        for key, value in zip(history, (epoch, total / len(source), validation, rate), strict=True):
            history[key].append(value)
        bar.set_postfix(training=f"{total / len(source):.4f}", validation=f"{validation:.4f}", refresh=False)
        if best_losses is None or validation < float(best_losses.mean()):
            best_losses, best_epoch = losses, epoch
            best_weights = copy.deepcopy(run.model.state_dict())
        worse_for = worse_for + every if _worse(losses, best_losses) else 0
        if worse_for >= patience:
            break
    if worse_for:
        run.model.load_state_dict(best_weights)
        return history, best_epoch
    return history, int(history["epoch"][-1])


def _give_up(name: str, epoch: int, rate: float) -> NoReturn:
    raise TrainingError(f"loss {name} is not finite in epoch {epoch} at learning_rate {rate:.3g}. Lower learning_rate.")


def _worse(losses: Tensor, best: Tensor) -> bool:
    """Whether the slices say by three standard errors that the losses are worse than the best."""
    difference = losses - best
    if len(difference) < 3:
        return bool(difference.mean() > 0)
    return bool(difference.mean() > WORSE * difference.std() / len(difference) ** 0.5)


def _check_options(
    batch: int | None, fraction: float, rate: float, epochs: int | None, patience: int | None, contrasts: int
) -> None:
    checks: tuple[tuple[str, Any, bool, str], ...] = (
        ("batch_size", batch, batch is None or batch >= 1, "at least 1"),
        ("validation_fraction", fraction, 0 < fraction < 1, "above 0 and below 1"),
        ("learning_rate", rate, rate > 0 and math.isfinite(rate), "above 0"),
        ("max_epochs", epochs, epochs is None or epochs >= 1, "at least 1"),
        ("patience", patience, patience is None or patience >= 1, "at least 1"),
        ("contrasts", contrasts, contrasts >= 1, "at least 1"),
    )
    for name, value, good, expected in checks:
        if not good:
            raise TrainingError(f"{name} = {value}, expected {expected}.")
