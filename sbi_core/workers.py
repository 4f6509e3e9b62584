"""Running chunks: here, or in worker processes of which any may be killed."""

import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from sbi_core.chunks import Part, ProcessDied, Task, draw_chunk
from sbi_core.errors import SimulatorError
from sbi_core.interrupts import Stop, serve
from sbi_core.plan import Plan


def run_tasks(plan: Plan, tasks: list[Task], path: Path | None, workers: int, stop: Stop) -> Iterator[tuple[int, Part]]:
    """Yield chunks as they come; after an error, or once `stop` asks to end, no new one is begun.

    `Task.allowed` counts the rows that may fail in all chunks together.
    """
    if workers == 1 and all(task.time_limit is None for task in tasks):
        failed = 0
        for task in tasks:
            if stop.signal:
                return
            part = draw_chunk(plan, replace(task, allowed=task.allowed - failed), path, lambda: bool(stop.signal))
            failed += len(part.failures)
            yield task.number, part
            if part.error:
                return
        return
    with tempfile.TemporaryDirectory(prefix="sbi-core-") as folder:
        stop.notes = Path(folder)
        try:
            yield from _Pool(plan, path, workers, stop, Path(folder)).run(tasks)
        finally:
            stop.notes = None


class _Pool:
    """Worker processes that come back after one was killed.

    A process that dies takes its pool with it, and nobody says which chunk it was. Each process notes the block that it
    is at; chunks in progress when a pool breaks are tried again one by one, and a block in which a process has died
    twice counts as failed.
    """

    def __init__(self, plan: Plan, path: Path | None, workers: int, stop: Stop, folder: Path) -> None:
        self.plan, self.path, self.workers, self.stop, self.folder = plan, path, workers, stop, folder
        self.deaths: Counter[tuple[int, int]] = Counter()
        self.failed = 0

    def run(self, tasks: list[Task]) -> Iterator[tuple[int, Part]]:
        """Yield the chunks."""
        left = {task.number: replace(task, notes=self.folder, owner=os.getpid()) for task in tasks}
        gave_up = False
        while left and not self.stop.signal and not gave_up:
            before = len(left), self.deaths.total()
            suspects = {chunk: left[chunk] for chunk, _ in sorted(self.deaths)}
            batch = suspects or dict(left)
            for number, part in self._once(batch, 1 if suspects else self.workers):
                note = left.pop(number).note
                assert note is not None  # every task of a pool has one
                note.unlink(missing_ok=True)
                self.deaths = Counter({at: n for at, n in self.deaths.items() if at[0] != number})
                gave_up = gave_up or part.error is not None
                yield number, part
            left = {number: self._after_deaths(task) for number, task in left.items()}
            if left and not gave_up and not self.stop.signal and before == (len(left), self.deaths.total()):
                broken = f"simulator '{self.plan.simulator.name}': worker processes die before they begin."
                yield min(left), Part(error=SimulatorError(broken))
                return

    def _once(self, tasks: dict[int, Task], workers: int) -> Iterator[tuple[int, Part]]:
        """Yield the chunks of one pool until it breaks, is told to stop or has met an error."""
        from loky import ProcessPoolExecutor, as_completed
        from loky.process_executor import BrokenProcessPool

        futures: dict[Any, int] = {}
        with _closing(ProcessPoolExecutor(max_workers=workers, initializer=serve, initargs=(os.getpid(),))) as pool:
            for number, task in tasks.items():
                allowed = replace(task, allowed=task.allowed - self.failed)
                futures[pool.submit(draw_chunk, self.plan, allowed, self.path)] = number
            for future in as_completed(futures):
                if future.cancelled():
                    continue
                try:
                    part = future.result()
                except BrokenProcessPool:
                    continue
                self.failed += len(part.failures)
                if part.error is None and part.failures and self.failed > tasks[futures[future]].allowed:
                    row, text = min(part.failures.items())
                    part.error = SimulatorError(
                        f"simulator '{self.plan.simulator.name}' {text}; row {row}. {self.failed} rows failed, more "
                        "than max_failures allows."
                    )
                if part.error or self.stop.signal:
                    for other in futures:
                        other.cancel()
                yield futures[future], part

    def _after_deaths(self, task: Task) -> Task:
        """Note what a chunk's process was at when it died, if it did; a block in which two died is skipped then."""
        assert task.note is not None
        if not task.note.exists():
            return task
        block, *why = task.note.read_text().split()
        task.note.unlink()
        at = (task.number, int(block))
        self.deaths[at] += 1
        if why:
            error: Exception = TimeoutError(f"no answer within {task.time_limit:g} s, and no way to interrupt it")
        elif self.deaths[at] > 1:
            error = ProcessDied("ended its process twice (out of memory, or a signal)")
        else:
            return task
        return replace(task, skip={**task.skip, at[1]: error})


def try_out(plan: Plan, time_limit: float | None) -> tuple[dict[str, Tensor], bool]:
    """`Plan.trial`: in a process of its own if it must end in time.

    Raises:
        SimulatorError: if the simulator fails or does not answer.
    """
    if time_limit is None:
        return plan.trial()
    from loky import ProcessPoolExecutor
    from loky.process_executor import BrokenProcessPool

    with tempfile.TemporaryDirectory(prefix="sbi-core-") as folder:
        note = Path(folder, "trial.txt")
        with _closing(ProcessPoolExecutor(max_workers=1, initializer=serve, initargs=(os.getpid(),))) as pool:
            try:
                found: tuple[dict[str, Tensor], bool] = pool.submit(plan.trial, time_limit, note).result()
            except BrokenProcessPool as error:
                why = "did not answer, and could not be interrupted" if note.exists() else "ended its process"
                raise SimulatorError(f"simulator '{plan.simulator.name}': a trial call {why}.") from error
    return found


@contextmanager
def _closing(pool: Any) -> Iterator[Any]:
    """Shut a pool down, and its processes at once where something is wrong."""
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=True, kill_workers=True)
        raise
    pool.shutdown(wait=True)
