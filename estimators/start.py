"""Whether a head starts with a regression, which gold may improve, or from nothing."""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from numpy.random import SeedSequence

from sbi_core.estimators.batches import Source
from sbi_core.estimators.checkpoints import Checkpoint
from sbi_core.estimators.estimator import Estimator
from sbi_core.estimators.loop import Loop, Plan
from sbi_core.estimators.losses import Batch, Loss, function_of
from sbi_core.estimators.regression import refine
from sbi_core.seeding import seeded

REFINED, PAIRS = 50_000, 1000
"""Rows on which gold improves the regression, at most; fewer are visited several times, until there are so many."""

TRIED, TRIAL = 5000, 100
"""Rows and steps of the trials with and without it, at most; a twentieth of the training's steps is enough."""


def regresses(model: Estimator) -> bool:
    """Whether a head starts with a regression."""
    return model.regression is not None and model.regression.used


def start(model: Estimator, loss: Loss, sample: Source, held: Sequence[Batch], plan: Plan, seed: SeedSequence) -> None:
    """Let gold improve the regression that a head starts with; leave it out if a short training does better without.

    In linear-Gaussian worlds nothing is left to learn. Where means bend, networks learn them sooner than what lines
    leave of them: with Bernoulli GLM and 1000 rows, `nle` loses 0.6 nats a row by that start.
    """
    if {"joint_log_ratio", "joint_score"} & set(getattr(function_of(loss), "needs", ())):
        visits = max(1, PAIRS // len(sample)) if sample.draws else 1
        chosen = torch.arange(len(sample))[:REFINED].repeat(visits)
        with seeded(seed):
            batch = sample.part(chosen, sample.score_scale).batch()
        refine(model.regression, lambda: loss(model, batch))
    rows = sample.part(slice(TRIED), sample.score_scale)
    steps = rows.steps(plan.batch_size)
    epochs = max(1, round(min(TRIAL, plan.epochs * plan.steps / 20) / steps))
    short, losses = replace(plan, epochs=epochs, steps=steps, patience=epochs), []
    for left_out in (False, True):
        trial = copy.deepcopy(model)
        if left_out:
            trial.regression.leave_out()
        loop = Loop(trial, loss, short, begun=not left_out)
        with seeded(seed):
            loop.run(copy.copy(rows), held, progress=False, callback=None, checkpoint=Checkpoint(None, {}))
        losses.append(math.inf if loop.lowest is None else float(loop.lowest.mean()))
    if losses[1] < losses[0]:
        model.regression.leave_out()
