"""The one training: what is trained, on which rows, for how long, and what came of it."""

import copy
import hashlib
import json
import math
import time
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from numpy.random import SeedSequence

from sbi_core.errors import SbiWarning, TrainingError
from sbi_core.estimators.batches import Source, prepare
from sbi_core.estimators.checkpoints import Checkpoint, seed_of
from sbi_core.estimators.estimator import Estimator
from sbi_core.estimators.loop import TROUBLE, Callback, Loop, Plan
from sbi_core.estimators.losses import LARGEST_LOG_RATIO, Batch, Loss, check_head, function_of, name_of
from sbi_core.estimators.options import check_options, device_of
from sbi_core.estimators.start import regresses, start
from sbi_core.estimators.streams import Split, Stream, split
from sbi_core.gold_check import GoldCheck
from sbi_core.inference.checks.familiar import Familiar, reader
from sbi_core.priors import describe
from sbi_core.seeding import fresh_seed, one_thread, seeded, torch_generator
from sbi_core.simulations import Rows
from sbi_core.simulator import Simulator

STEPS, EPOCHS = 2000, 50
"""Default length of training: at least so many steps and so many passes over the rows ..."""

MOST_STEPS = 200_000
"""... but not more steps than this, unless one pass has more."""

MEMORY = 2e9
"""Bytes of a store's rows above which they are streamed."""

VISITS, VISITED = 8, 1000
"""Held-out rows are looked at with several draws of contrasts, up to so many and until there are so many pairs ..."""

TOLERANCE = 1.0
"""Standard errors by which held-out losses must be worse to count, where gold draws labels anew: what is learned last
is best then, and the lowest of many looks is luck. Without gold, the lowest counts."""

SLICES, PIECE = 20, 1024
"""... in so many slices or more, of about so many pairs at most; their differences give the loss its error."""


@dataclass(frozen=True)
class Fit:
    """A finished training.

    Attributes:
        estimator: the trained copy, in evaluation mode, on the CPU.
        loss: the loss's name.
        history: per look at the held-out rows: epoch, training, validation (losses), learning_rate.
        best_epoch: the epoch whose weights were kept; 0 if none was better than what training started from.
        ended: "patience" if the held-out loss had not improved for `patience` epochs, "budget" if all epochs were
            used, "trouble" if the loss was no longer finite (only ever in `TrainingError.fit`).
        seed: fixes split, initial weights, batches and contrasts.
        flags: what a careful reader should know, in sentences.
        gold: the gold check made before training; `None` if none was made.
        seconds: wall time, that of earlier parts of a resumed training included.
        rows: training rows and held-out rows.
        held_out: which rows were held out, by their number in the campaign, (H,).
    """

    estimator: Estimator
    loss: str
    history: dict[str, list[float]]
    best_epoch: int
    ended: str
    seed: int
    flags: tuple[str, ...]
    gold: GoldCheck | None
    seconds: float
    rows: tuple[int, int]
    held_out: torch.Tensor


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
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    contrasts: int | None = None,
    device: str | torch.device = "auto",
    mixed_precision: bool = True,
    memory: float = MEMORY,
    checkpoint: str | Path | None = None,
    callback: Callback | None = None,
    progress: bool = True,
    gold_check: bool = True,
    invalid: str = "error",
) -> Fit:
    """Train a copy of an estimator.

    A head of plain numbers starts with linear regression if that helps (see `start`). AdamW with a cosine schedule that
    ends at zero, gradients clipped at norm 5, float32 network and float64 gold. What is kept are running averages of
    the weights (see `Loop`), those with the lowest loss on held-out rows; where gold draws labels anew, the latest
    within one standard error of it. Contrasts theta_alt (N, C, D) are drawn from the
    recorded proposal (else from the other rows' theta), afresh at every visit of a row, with the joint log ratio from
    the simulator's `log_joint`, and the row's own theta is drawn again among them (see `Source`); stored contrasts
    serve where z or the simulator is absent. A store larger than `memory` is streamed (see `Stream`), held-out rows
    are then whole chunks.

    Args:
        estimator: what to train; it is not changed. One that is untrained gets new weights and scaling, one that is
            trained goes on from where it is.
        loss: (estimator, batch) -> scalar, such as `alices` or `partial(alices, alpha=0.3)`.
        data: simulations, or a store.
        simulator: where gold comes from.
        seed: fixes everything random; `None` draws one and records it, or takes that of the checkpoint.
        max_epochs: passes over the rows; by default 50, and at least 2000 steps.
        batch_size: rows per step; by default a twentieth of the rows, from 128 to 512. A posterior of many events needs
            f to be right to a fraction of 1 / events, and fewer steps do not get there.
        validation_fraction: share of rows held out, above 0 and below 1.
        patience: epochs without a better held-out loss; a third of `max_epochs` by default.
        learning_rate: the highest of the schedule; by default 0.01 for `carl`, `nre` and `nre_gold`, 0.003 for
            others.
        weight_decay: of matrices; by default `estimator.decay` / rows, at most 1.
        contrasts: contrasts per row and visit; by default what suits the loss: 9 for `nre` and `nre_gold`, 2 for the
            others.
        device: where the network is trained; "auto" takes a CUDA device if there is one.
        mixed_precision: on a CUDA device, let the embedding take products in bfloat16; all else stays in float32.
        memory: bytes of rows above which a store is streamed.
        checkpoint: folder for the state of the training; the same call carries on from what is there, and on the CPU
            ends with the same bits as without the interruption. Without it nothing is written.
        callback: called with the newest line of `Fit.history` at each look at the held-out rows.
        progress: whether to show a bar.
        gold_check: whether to test the gold first and stop if it is wrong.
        invalid: "drop" trains without rows whose x is not finite; "error" refuses them.

    Raises:
        InputError: for rows that cannot be used.
        MissingGold: if the loss needs gold that neither data nor simulator have.
        GoldError: if the gold is wrong.
        TrainingError: for an unusable option, a checkpoint of another training, or a loss that is not finite; then
            its `fit` holds the best weights so far.
    """
    check_options(locals())
    started = time.perf_counter()
    contrasts = getattr(function_of(loss), "contrasts", 2) if contrasts is None else contrasts
    check_head(loss, type(estimator))
    place = device_of(device)
    seed = seed_of(checkpoint) if seed is None else seed
    seed = fresh_seed() if seed is None else seed
    for_split, for_weights, for_training, for_validation, for_start = SeedSequence(seed).spawn(5)
    theta_ref = getattr(estimator, "theta_ref", None)
    rows = split(
        data,
        estimator,
        partial(prepare, loss, simulator=simulator, contrasts=contrasts, seed=seed, theta_ref=theta_ref),
        fraction=validation_fraction,
        generator=torch_generator(for_split),
        memory=memory,
        check=gold_check,
        invalid=invalid,
    )
    decay = min(1.0, estimator.decay / len(rows.training)) if weight_decay is None else weight_decay
    rate: float = getattr(function_of(loss), "learning_rate", 3e-3) if learning_rate is None else learning_rate
    plan = _plan(rows, max_epochs, batch_size, patience, rate, decay, place)
    model, flags = copy.deepcopy(estimator), list(rows.flags)
    model.denormalise()
    if not model.trained:
        with seeded(for_weights):
            model.reset()
        flags += model.adapt(rows.sample.rows)
        if rows.sample.score_scale is not None:
            model.set_unit(rows.sample.score_scale.whitening)
    facts = _facts(loss, seed, data, rows)
    state = Checkpoint(checkpoint, _identity(facts, loss, estimator, plan, contrasts))
    with seeded(for_validation):
        held = _held(rows.validation, place)
    if regresses(model) and not model.trained and not state.begun:
        with one_thread():
            start(model, loss, rows.sample, held, plan, for_start)
    if model.embedding is not None:
        model.embedding.mixed_precision = mixed_precision
    if isinstance(rows.training, Stream):
        rows.training.watch = copy.deepcopy(model).far
    loop = Loop(model, loss, plan, begun=bool(model.trained) or regresses(model))
    with seeded(for_training), one_thread():
        state.resume(loop, rows.training)
        ended = loop.run(rows.training, held, progress=progress, callback=callback, checkpoint=state)

    flags += state.flags
    if clipped := rows.training.clipped:
        flags.append(
            f"joint ratios above e^{LARGEST_LOG_RATIO:.0f} in {clipped} of {len(rows.training)} rows were clipped, "
            f"which biases {name_of(loss)}: draw contrasts near each row's theta, or use loss=alice"
        )
    model.load_state_dict(loop.kept)
    for weight in model.parameters():  # the loop laid them end to end
        weight.data, weight.grad = weight.data.clone(), None
    model.trained |= loop.lowest is not None
    model.to("cpu").eval()
    flags += _far_out(model, rows)
    if model.embedding is not None:
        model.embedding.mixed_precision = False
    known = rows.sample.rows
    model.normalise(known, rows.sample.weight)
    model.provenance = {**facts, "flags": flags}
    fresh, kind = (rows.validation.rows.x, rows.validation.rows.n_events), model.categories
    model.familiar = Familiar.of(known.x, known.n_events, categories=kind, seen=reader(model), fresh=fresh)
    found = Fit(
        estimator=model,
        loss=name_of(loss),
        history=loop.history,
        best_epoch=loop.best_epoch,
        ended=ended,
        seed=seed,
        flags=tuple(flags),
        gold=rows.gold,
        seconds=state.seconds + time.perf_counter() - started,
        rows=(len(rows.training), len(rows.validation)),
        held_out=rows.validation.rows.row,
    )
    if ended == TROUBLE:
        raise _trouble(found, loop, checkpoint)
    for flag in flags:
        if flag not in state.flags:  # those were said at once
            warnings.warn(flag, SbiWarning, stacklevel=2)
    return found


def _plan(
    rows: Split,
    epochs: int | None,
    batch: int | None,
    patience: int | None,
    rate: float,
    decay: float,
    device: torch.device,
) -> Plan:
    batch = batch or min(max((len(rows.training) + len(rows.validation)) // 20, 128), 512)
    steps, tolerance = rows.training.steps(batch), TOLERANCE if rows.validation.here is not None else 0.0
    epochs = epochs or max(1, min(max(EPOCHS, math.ceil(STEPS / steps)), MOST_STEPS // steps))
    return Plan(epochs, steps, batch, patience or max(1, epochs // 3), rate, decay, tolerance, device)


def _held(validation: Source, device: torch.device) -> list[Batch]:
    """The held-out rows in slices, each row with several draws of contrasts if there are any."""
    n = len(validation)
    visits = min(VISITS, max(1, VISITED // n)) if validation.draws else 1
    repeated = validation.part(torch.arange(n).repeat_interleave(visits), validation.score_scale)
    batch = repeated.batch().to(device)
    fewest = SLICES if validation.here is not None else 1
    slices = torch.arange(len(repeated), device=device).tensor_split(max(fewest, len(repeated) // PIECE))
    return [batch[index] for index in slices if len(index)]


def _far_out(model: Estimator, rows: Split) -> list[str]:
    """A flag that names the rows, seen in training or held out, whose x is extremely far out."""
    found = {*model.far(rows.sample.rows), *model.far(rows.validation.rows)}
    far = sorted(found | (rows.training.far if isinstance(rows.training, Stream) else set()))
    named = f"{', '.join(map(str, far[:10]))}{', ...' if len(far) > 10 else ''}"
    cure = "if they are failures, store NaN there and say invalid='drop'"
    return [f"x is extremely far out in {len(far)} rows (rows {named}); {cure}"] if far else []


def _facts(loss: Loss, seed: int, data: Rows, rows: Split) -> dict[str, Any]:
    """What a saved estimator says about its training."""
    known = rows.sample.rows
    return {
        "loss": name_of(loss),
        "seed": seed,
        "rows": [len(rows.training), len(rows.validation)],
        "simulator": known.info.simulator,
        "simulator_version": known.info.version,
        "campaign_seed": known.info.seed,
        "prior": describe(known.info.proposal),
        "data_sha256": _digest(len(data), known.theta, known.x[:10_000]),
    }


def _identity(facts: dict[str, Any], loss: Loss, estimator: Estimator, plan: Plan, contrasts: int) -> dict[str, Any]:
    """What must be the same for a checkpoint to be carried on."""
    options = repr(loss.keywords if isinstance(loss, partial) else {})
    settings = {name: value for name, value in vars(plan).items() if name != "device"}
    began = _digest(estimator.describe(), *estimator.state_dict().values())
    return {**facts, **settings, "loss_options": options, "contrasts": contrasts, "estimator": began}


def _digest(*parts: Any) -> str:
    found = hashlib.sha256()
    for part in parts:
        tensor = isinstance(part, torch.Tensor)
        found.update(part.detach().cpu().contiguous().numpy().tobytes() if tensor else json.dumps(part).encode())
    return found.hexdigest()


def _trouble(found: Fit, loop: Loop, checkpoint: str | Path | None) -> TrainingError:
    text = (
        f"loss {found.loss} is not finite in epoch {loop.epoch} at learning_rate "
        f"{loop.plan.rate(loop.steps - 1):.3g}. Lower learning_rate (now {loop.plan.learning_rate:.3g})."
    )
    if loop.lowest is not None:
        where = "in this error's .fit.estimator"
        if checkpoint is not None:
            where = f"in {found.estimator.save(Path(checkpoint) / 'best')}"
        text += f" The best weights so far, of epoch {found.best_epoch}, are {where}."
    error = TrainingError(text)
    error.fit = found
    return error
