"""Who answers an experiment: a simulator with a hidden theta, a function, or a folder where results are dropped."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_core.campaign import simulate
from sbi_core.columns import to_column
from sbi_core.errors import InputError
from sbi_core.estimators.files import replace_file
from sbi_core.events import Events
from sbi_core.observation import pad_events, read_observation
from sbi_core.parameters import Parameter
from sbi_core.seeding import derived_seed
from sbi_core.simulator import Simulator

Nature = Callable[[Tensor, int], Any]
"""design (K,), round -> x (event), or x and the number of events that count, or `None` if there is no answer yet."""

ENDINGS = ("npy", "npz", "csv")


@dataclass(frozen=True)
class Hidden:
    """A simulator whose theta nobody tells: the same round and design give the same answer.

    Args:
        simulator: as it is run in the loop, `Events` for runs.
        theta: the truth, (D,).
        seed: of its answers.
    """

    simulator: Simulator
    theta: Any
    seed: int = 0

    repeatable = True

    def __call__(self, design: Tensor, number: int) -> tuple[Tensor, Tensor | None]:
        """Run the experiment of a round at design (K,): x (event), and the number of events () in it."""
        theta, seed = to_column("theta", self.theta), derived_seed(self.seed, number)
        rows = simulate(self.simulator, 1, proposal=theta, design=design, seed=seed, progress=False)
        return rows.x[0], None if rows.n_events is None else rows.n_events[0]


@dataclass(frozen=True)
class Folder:
    """Ask and tell: `003.ask.json` names the design of a round, and someone drops `003.npy`, `.npz` or `.csv`.

    Runs of events whose number varies are dropped as the events alone, (n, ...); a npz file may hold zero-padded x and
    n_events instead. Write an answer elsewhere and move it there, as half of one looks like a smaller one; once read it
    is kept in the ledger, and what is changed afterwards is not seen.

    Args:
        path: the folder; it is made if it is not there.
        designs: the axes, for the names in the question.
    """

    path: Path
    designs: tuple[Parameter, ...]

    repeatable = True

    def __call__(self, design: Tensor, number: int) -> tuple[Tensor, Any] | None:
        """Ask at design (K,), or read what was told, x (event) and the number of events that count, if it is there.

        Raises:
            InputError: for several answers, or if the same round was asked at another design before.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        at = {axis.name: value for axis, value in zip(self.designs, design.tolist(), strict=True)}
        units = {axis.name: axis.unit for axis in self.designs}
        question = self.path / f"{number:03d}.ask.json"
        if question.exists():
            asked = json.loads(question.read_text())["design"]
            if asked != at:
                raise InputError(
                    f"{question} asks at {asked}, and this loop chose {at} in round {number}: it belongs to another "
                    "loop. Choose another folder, or carry that loop on, with its ledger's folder and its seed."
                )
        else:
            replace_file(question, json.dumps({"round": number, "design": at, "units": units}, indent=1).encode())
        told = [path for ending in ENDINGS if (path := self.path / f"{number:03d}.{ending}").exists()]
        if len(told) > 1:
            raise InputError(f"round {number} has several answers: {', '.join(p.name for p in told)}. Keep one.")
        if not told:
            return None
        count = None
        if told[0].suffix == ".npz":
            with np.load(told[0], allow_pickle=False) as found:
                count = found["n_events"] if "n_events" in found.files else None
        return read_observation(str(told[0]), {}), count


def as_nature(nature: Any, simulator: Simulator) -> Nature:
    """The argument `nature` of `run_loop` as a function of design and round.

    Raises:
        InputError: for something that cannot answer.
    """
    if isinstance(nature, str | Path):
        return Folder(Path(nature), simulator.designs)
    if callable(nature):
        return nature
    raise InputError(
        f"nature is {type(nature).__name__}: expected Hidden(simulator, theta), a function (design, round) -> x, or a "
        "folder."
    )


def answer(found: Any, estimator: Any, number: int) -> tuple[Tensor, Tensor | None]:
    """What a nature returned in a round, as x (event) and the number of events () if the estimator needs it.

    Raises:
        InputError: for values that are not finite, or not in the shape that the estimator reads.
    """
    x, count = found if isinstance(found, tuple) else (found, None)
    x = to_column("x_obs", x)
    if not bool(torch.isfinite(x).all()):
        raise InputError(f"the experiment of round {number} returned NaN or infinite values.")
    runs = isinstance(estimator, Events)
    shape = (estimator.n_max, *estimator.x_event) if runs else getattr(estimator, "x_shape", None)
    if getattr(estimator, "needs_n_events", False):
        x = x[:, None] if x.ndim == 1 and shape is not None and shape[1:] == (1,) else x
        return pad_events(x, shape or x.shape, count)
    if shape is None or x.shape == shape:
        return x, None
    if [size for size in x.shape if size != 1] != [size for size in shape if size != 1]:
        raise InputError(f"x of round {number} has shape {tuple(x.shape)}, expected {tuple(shape)}.")
    return x.reshape(shape), None
