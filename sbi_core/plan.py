"""What fixes the rows of a campaign: simulator, proposal, design and seed, drawn block by block."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.columns import check_labels, to_column
from sbi_core.errors import SbiError, SimulatorError
from sbi_core.interrupts import Ended, RowTimeout, alarm
from sbi_core.seeding import block_seed, one_thread, seeded, torch_generator
from sbi_core.simulations import Info, Simulations
from sbi_core.simulator import Mined, Simulator

TRIAL = 10
"""Rows of the trial call that tells the shapes before any costly work."""

QUICK = 1.0
"""Seconds of a trial call above which it is not repeated."""


@dataclass(frozen=True)
class Plan:
    """Everything that fixes the rows, small enough to send to a worker."""

    simulator: Simulator
    proposal: Distribution | Tensor
    design: Distribution | Tensor | None
    seed: int
    info: Info
    example: Mapping[str, Tensor] = field(default_factory=dict)
    chunk_rows: int = 0
    n: int = 0

    def block(self, number: int, rows: int | None = None) -> tuple[dict[str, Tensor], Mapping[int, BaseException]]:
        """Draw one block of rows: columns (rows_per_seed, ...), and the rows that the simulator says have failed."""
        simulator, rows = self.simulator, rows or self.simulator.rows_per_seed
        seeds = block_seed(self.seed, number).spawn(5)
        with one_thread():
            given = self._given(number, rows, seeds)
            made = self._mined(given, seeds[2:4])
            columns = given | {"x": self._column("x", made.x, given["theta"])}
            if made.z is not None:
                columns["z"] = self._column("z", made.z, given["theta"])
            columns |= self._gold(made, given["theta"])
            if (count := simulator.count(made.z)) is not None:
                columns["n_events"] = count
        if simulator.categories is not None:
            check_labels(f"simulator '{simulator.name}': x", columns["x"], simulator.categories)
        return columns, made.failures or {}

    def _given(self, number: int, rows: int, seeds: list[np.random.SeedSequence]) -> dict[str, Tensor]:
        """What a block is asked at: theta (rows, D), its design and its contrasts."""
        first, contrasts = number * self.simulator.rows_per_seed, self.simulator.contrasts
        given = {"theta": _draw(self.proposal, seeds[0], first, rows)}
        if self.design is not None:
            given["design"] = _draw(self.design, seeds[1], first, rows)
        if contrasts:
            source = self.simulator.prior if isinstance(self.proposal, Tensor) else self.proposal
            given["theta_alt"] = _draw(source, seeds[4], 0, rows * contrasts).reshape(rows, contrasts, -1)
        return given

    def failed(self, number: int, status: int) -> dict[str, Tensor]:
        """A block whose call failed: NaN but for what it was asked at, and its column `status`."""
        rows = self.simulator.rows_per_seed
        columns = self._given(number, rows, block_seed(self.seed, number).spawn(5))
        for name, like in self.example.items():
            if name not in columns and name != "row":
                nothing = torch.nan if like.is_floating_point() else 0
                columns[name] = torch.full((rows, *like.shape[1:]), nothing, dtype=like.dtype)
        return columns | {"status": torch.full((rows,), status, dtype=torch.uint8)}

    def trial(self, time_limit: float | None = None, note: Path | None = None) -> tuple[dict[str, Tensor], bool]:
        """Call the simulator on a few rows of no campaign: its columns, and whether a call is quick.

        A call that fails is repeated at other thetas; seconds for a row and `note` are those of `alarm`.

        Raises:
            SimulatorError: if every call fails.
        """
        rows, simulator = min(TRIAL, self.simulator.rows_per_seed), self.simulator
        attempts = TRIAL if rows == 1 else 3
        for seed in range(attempts):
            plan = replace(self, seed=seed)
            began = time.perf_counter()
            try:
                with alarm(None if time_limit is None else rows * time_limit, note):
                    columns, failed = plan.block(0, rows)
                if len(failed) < rows:
                    break
                failure: BaseException = failed[0]
            except (SbiError, Ended):
                raise
            except (Exception, RowTimeout, SystemExit) as error:
                failure = error
        else:
            theta = plan._given(0, rows, block_seed(plan.seed, 0).spawn(5))["theta"][0].tolist()
            raise SimulatorError(
                f"simulator '{simulator.name}' fails in each of {attempts} trial calls; the last raised "
                f"{type(failure).__name__}: {failure}, at theta = {theta}."
            ) from failure
        return complete(columns, 0, self.info).columns(), time.perf_counter() - began < QUICK

    def _mined(self, given: dict[str, Tensor], seeds: list[np.random.SeedSequence]) -> Mined:
        """Call the simulator on copies, which it may overwrite; its generator and the global state are two streams."""
        alt, design = (given[name].clone() if name in given else None for name in ("theta_alt", "design"))
        try:
            with seeded(seeds[1]):
                made = self.simulator.mine(given["theta"].clone(), alt, design, torch_generator(seeds[0]))
        except SimulatorError as error:
            raise SimulatorError(f"{error} {self._all_rows('x')}".rstrip()) from error
        if not isinstance(made, Mined):
            what = f"simulator '{self.simulator.name}': mine returned {type(made).__name__}"
            raise SimulatorError(f"{what}, expected Mined(x, z, joint_score, joint_log_ratio).")
        return made

    def _gold(self, made: Mined, theta: Tensor) -> dict[str, Tensor]:
        """The gold that the program gave itself, checked: its shapes are known."""
        contrasts, found = self.simulator.contrasts, {}
        for name, width in (("joint_score", theta.shape[1]), ("joint_log_ratio", contrasts)):
            value = getattr(made, name)
            if value is not None:
                column = self._column(name, value, theta)
                if column.shape != (len(theta), width) or not width:
                    cure = " Set contrasts, so that theta_alt is drawn." if not width else ""
                    raise SimulatorError(
                        f"simulator '{self.simulator.name}': {name} has shape {tuple(column.shape)}, expected "
                        f"{(len(theta), width)}.{cure}"
                    )
                found[name] = column
        if contrasts and "joint_log_ratio" not in found:
            raise SimulatorError(
                f"simulator '{self.simulator.name}' has contrasts = {contrasts}, but mine returned no joint_log_ratio."
            )
        return found

    def _shape(self, name: str) -> tuple[int, ...] | None:
        if name in self.example:
            return tuple(self.example[name].shape[1:])
        return self.simulator.x_shape if name == "x" else None

    def _all_rows(self, name: str) -> str:
        """Say what shape the whole campaign has, where that is known."""
        shape = self._shape(name)
        return "" if shape is None else f"All rows together: expected {(self.n, *shape)}."

    def _column(self, name: str, value: Any, theta: Tensor) -> Tensor:
        shape = self._shape(name)
        expected = f"({len(theta)}, ...)" if shape is None else f"{(len(theta), *shape)}"
        where = f"simulator '{self.simulator.name}': {name}"
        at = f"; the first theta of this call is {theta[0].tolist()}. {self._all_rows(name)}".rstrip()
        if not isinstance(value, Tensor | np.ndarray):
            raise SimulatorError(f"{where} is {type(value).__name__}, expected {expected} as a tensor or array{at}")
        column = to_column(name, value)
        if column.ndim < 2 or len(column) != len(theta) or (shape is not None and column.shape[1:] != shape):
            cure = f" One number per row needs {name}[:, None]." if column.shape == (len(theta),) else ""
            raise SimulatorError(f"{where} has shape {tuple(column.shape)}, expected {expected}{at}{cure}")
        return column.clone() if isinstance(value, Tensor) else column


def _draw(source: Distribution | Tensor, seed: np.random.SeedSequence, first: int, rows: int) -> Tensor:
    if isinstance(source, Tensor):
        if source.ndim == 1:
            return source.expand(rows, -1).clone()
        index = torch.arange(first, first + rows).clamp(max=len(source) - 1)
        return source[index]
    with seeded(seed):
        return source.sample(torch.Size([rows])).to(torch.float64)


def complete(columns: dict[str, Any], first: int, info: Info) -> Simulations:
    """Add status and row numbers."""
    row = torch.arange(first, first + len(columns["theta"]))
    return Simulations(**columns, info=info, row=row)
