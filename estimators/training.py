"""The one training loop."""

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from numpy.random import SeedSequence
from torch import Tensor
from tqdm.auto import tqdm

from sbi_core.errors import InputError, MissingGold, TrainingError
from sbi_core.estimators.estimator import Estimator
from sbi_core.estimators.losses import Batch, Loss
from sbi_core.gold import joint_score, log_joint
from sbi_core.gold_check import GoldCheck, check_gold
from sbi_core.parameters import match, names
from sbi_core.seeding import fresh_seed, one_thread, seeded
from sbi_core.simulations import Rows, Simulations
from sbi_core.simulator import Simulator

MIN_ROWS = 20
"""Fewer simulations than this are refused."""

MIN_STEPS = 2500
"""Default length of training: at least this many steps, and at least MIN_EPOCHS."""

MIN_EPOCHS = 40

VALIDATION_CONTRASTS = 8
"""Contrasts per held-out row, drawn once, so that validation losses of different epochs compare."""


@dataclass(frozen=True)
class Fit:
    """A finished training.

    Attributes:
        estimator: the trained copy, in evaluation mode, on the CPU.
        loss: the loss's name.
        history: per epoch: epoch, training loss, validation loss, learning rate.
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
