"""One chunk of a campaign: its blocks drawn and written, rows that fail marked, and what failed kept in words."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sbi_core.errors import SbiError, SimulatorError
from sbi_core.interrupts import Ended, RowTimeout, alarm, end_with
from sbi_core.plan import Plan, complete
from sbi_core.simulations import FAILED, TIMED_OUT, status_of
from sbi_core.store import Store

LONGEST = 2000
"""Characters that are kept of what happened in a row."""


class ProcessDied(Exception):
    """A worker process ended in the middle of a row."""


@dataclass(frozen=True)
class Task:
    """A chunk to be drawn.

    Attributes:
        number: of the chunk.
        rows: how many of its rows are wanted, from its first.
        done: how many are committed already.
        allowed: rows that may fail before it gives up.
        time_limit: seconds for a row.
        skip: blocks that are known to fail, and why.
        notes: folder in which the process says what it is doing, and in which a file `stop` asks it to end.
        owner: the process that began the process that draws it, without which nothing is to be written.
    """

    number: int
    rows: int
    done: int
    allowed: int
    time_limit: float | None = None
    skip: Mapping[int, BaseException] = field(default_factory=dict)
    notes: Path | None = None
    owner: int | None = None

    @property
    def note(self) -> Path | None:
        """The file that holds the number of the block in progress, until the chunk has arrived."""
        return None if self.notes is None else self.notes / f"{self.number}.txt"

    def stopped(self) -> bool:
        """Whether somebody asked to end."""
        return self.notes is not None and (self.notes / "stop").exists()


@dataclass
class Part:
    """What came of a chunk.

    Attributes:
        columns: rows that are complete, or only their theta where all are in the store; empty if nothing was added.
        failures: row -> what happened.
        error: why it was given up, if it was.
    """

    columns: dict[str, Any] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    error: SimulatorError | None = None


def draw_chunk(plan: Plan, task: Task, path: Path | None, stopped: Callable[[], bool] | None = None) -> Part:
    """Draw the first rows of a chunk, block by block, and write what is complete to the store at `path`.

    Args:
        plan: of the campaign.
        task: which rows.
        path: the store's folder; without it the rows are returned.
        stopped: whether somebody has asked to end; in a worker process a file says so.
    """
    stopped = stopped or task.stopped
    size, part = plan.simulator.rows_per_seed, Part()
    first = task.number * plan.chunk_rows
    blocks: list[dict[str, Tensor]] = []
    for number in range(first // size, -(-(first + task.rows) // size)):
        if stopped():
            break
        if task.note is not None:
            partial = task.note.with_suffix(".partial")  # a process that is killed here leaves the last note
            partial.write_text(str(number))
            partial.replace(task.note)
        try:
            block, failed = _drawn(plan, number, task)
        except SimulatorError as broken:
            part.error = broken
            break
        except (Ended, KeyboardInterrupt):
            if not stopped():
                raise
            break  # asked for the second time; the rows before are kept
        if failed and stopped():
            break  # the signal may have ended what the simulator had begun
        failed = {number * size + k: error for k, error in failed.items() if number * size + k < first + task.rows}
        if len(part.failures) + len(failed) > task.allowed:
            row = min(failed)
            error = failed[row]
            part.error = SimulatorError(
                f"simulator '{plan.simulator.name}' {_in_words(error)[1]}; row {row}, theta = "
                f"{block['theta'][row - number * size].tolist()}. More rows failed than max_failures allows."
            )
            part.error.__cause__ = error
            break
        part.failures |= {row: _in_words(error)[1] for row, error in failed.items()}
        blocks.append(block)
    if len(blocks) * size <= task.done:
        part.failures = {}
        return part
    columns = {name: torch.cat([block[name] for block in blocks])[: task.rows] for name in blocks[0]}
    part.columns = complete(columns, first, plan.info).columns()
    if path is not None:
        if task.owner is not None:
            end_with(task.owner)
        Store(path).write(task.number, part.columns, part.failures)
        part.columns = {"theta": part.columns["theta"]}
    return part


def _drawn(plan: Plan, number: int, task: Task) -> tuple[dict[str, Tensor], dict[int, BaseException]]:
    """One block with its column `status`, and its rows that failed, counted from its first."""
    seconds = None if task.time_limit is None else task.time_limit * plan.simulator.rows_per_seed
    try:
        if number in task.skip:
            raise task.skip[number]
        with alarm(seconds, task.note):
            block, failed = plan.block(number)
    except (SimulatorError, Ended):
        raise
    except SbiError as error:
        raise SimulatorError(f"simulator '{plan.simulator.name}' raised {type(error).__name__}: {error}") from error
    except (Exception, RowTimeout, SystemExit) as error:
        return plan.failed(number, _in_words(error)[0]), dict.fromkeys(range(plan.simulator.rows_per_seed), error)
    status = status_of(block["x"])
    for row, why in failed.items():
        status[row] = _in_words(why)[0]
    return block | {"status": status}, dict(failed)


def _in_words(error: BaseException) -> tuple[int, str]:
    """The status of a row that failed, and what happened."""
    if isinstance(error, RowTimeout | TimeoutError):
        return TIMED_OUT, f"timed out: {error}"
    if isinstance(error, ProcessDied):
        return FAILED, str(error)
    return FAILED, f"raised {type(error).__name__}: {error}"[:LONGEST]
