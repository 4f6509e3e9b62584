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
from sbi_core.observation import read_observation
from sbi_core.parameters import Parameter
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
        """Run the experiment of a round at design (K,): x (event), and the number of events (), if it varies."""
        theta = to_column("theta", self.theta)
        seed = int(np.random.SeedSequence(self.seed, spawn_key=(number,)).generate_state(1)[0])
        rows = simulate(self.simulator, 1, proposal=theta, design=design, seed=seed, progress=False)
        return rows.x[0], None if rows.n_events is None else rows.n_events[0]


@dataclass(frozen=True)
class Folder:
    """Ask and tell: `003.ask.json` names the design of a round, and someone drops `003.npy`, `.npz` or `.csv`.

    Args:
        path: the folder; it is made if it is not there.
        designs: the axes, for the names in the question.
        event: shape of the answer.
    """

    path: Path
    designs: tuple[Parameter, ...]
    event: tuple[int, ...] | None = None

    repeatable = True

    def __call__(self, design: Tensor, number: int) -> Tensor | None:
        """Ask at design (K,), or read what was told, x (event)."""
        self.path.mkdir(parents=True, exist_ok=True)
        ask = {axis.name: value for axis, value in zip(self.designs, design.tolist(), strict=True)}
        question = self.path / f"{number:03d}.ask.json"
        if not question.exists():
            replace_file(question, json.dumps({"round": number, "design": ask}, indent=1).encode())
        told = [path for ending in ENDINGS if (path := self.path / f"{number:03d}.{ending}").exists()]
        if len(told) > 1:
            raise InputError(f"round {number} has several answers: {', '.join(p.name for p in told)}. Keep one.")
        if not told:
            return None
        x = read_observation(str(told[0]), {})
        if self.event is None or x.shape == self.event:
            return x
        if x.numel() != int(np.prod(self.event)):
            raise InputError(f"{told[0].name} has shape {tuple(x.shape)}, expected {self.event}.")
        return x.reshape(self.event)


def as_nature(nature: Any, simulator: Simulator) -> Nature:
    """The argument `nature` of `run_loop` as a function of design and round.

    Raises:
        InputError: for something that cannot answer.
    """
    if isinstance(nature, str | Path):
        return Folder(Path(nature), simulator.designs, None if simulator.x_shape is None else simulator.x_shape)
    if callable(nature):
        return nature
    raise InputError(
        f"nature is {type(nature).__name__}: expected Hidden(simulator, theta), a function (design, round) -> x, or a "
        "folder."
    )


def answer(found: Any) -> tuple[Tensor, Tensor | None]:
    """What a nature returned, as x (event) and the number of events () or `None`."""
    x, count = found if isinstance(found, tuple) else (found, None)
    x = to_column("x_obs", x)
    if not bool(torch.isfinite(x).all()):
        raise InputError("the experiment returned NaN or infinite values.")
    return x, None if count is None else torch.as_tensor(count).long()
