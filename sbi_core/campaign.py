"""Running a simulator many times: chunk k is the unit of work, of write and of resume; a block that of seed."""

import json
import math
import signal
import sys
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.distributions import Distribution
from tqdm import tqdm

from sbi_core.chunks import Part, Task
from sbi_core.columns import to_column
from sbi_core.errors import InputError, SbiWarning, SimulatorError, StoreError
from sbi_core.interrupts import end, stoppable
from sbi_core.parameters import names
from sbi_core.plan import Plan
from sbi_core.priors import check_prior, describe
from sbi_core.seeding import fresh_seed
from sbi_core.simulations import Info, Simulations
from sbi_core.simulator import Simulator, _plain
from sbi_core.store import Store
from sbi_core.workers import run_tasks, try_out


def simulate(
    simulator: Simulator,
    n: int,
    *,
    store: str | Path | None = None,
    proposal: Distribution | Tensor | None = None,
    design: Distribution | Tensor | None = None,
    seed: int | None = None,
    workers: int = 1,
    progress: bool = True,
    chunk_rows: int | None = None,
    max_failures: int | None = None,
    time_limit: float | None = None,
) -> Any:
    """Run a simulator n times.

    Row i depends on the simulator, its version, `seed` and i alone, not on workers, chunks or restarts: rows are drawn
    in blocks of `simulator.rows_per_seed`, each from `SeedSequence(seed, spawn_key=(block,))`, a partly needed block
    whole. A campaign with a store is continued, after an interruption or with a larger n, by the same call.

    Args:
        simulator: what to run.
        n: number of rows wanted in all.
        store: folder of the campaign; without it the rows are returned.
        proposal: density of theta, event shape (D,), or one theta (D,), or one per row (n, D); the prior by default.
        design: density of the design, or one design (K,), or one per row (n, K); the simulator's own by default.
        seed: fixes the rows; `None` reads it from the store, or draws one and records it.
        workers: processes.
        progress: whether to show a bar.
        chunk_rows: rows per chunk of a new store, a multiple of `rows_per_seed`; about a hundredth of n by default.
        max_failures: rows that may fail, because the simulator raises an error, does not answer in time or ends its
            worker process twice; a hundredth of n by default. They are NaN, with a status of their own, and
            `.failures` says what happened. Code that takes `rows_per_seed` rows at once fails for all of them.
        time_limit: seconds for a row; the simulator then runs in worker processes, even with `workers=1`, so that it
            can be ended. Not on systems without SIGALRM (Windows).

    Returns:
        `Simulations` with n rows, or the `Store` if `store` was given. A warning tells of failed rows.

    Raises:
        InputError: for arguments that do not fit.
        StoreError: if the store belongs to another campaign.
        SimulatorError: if the simulator broke its contract, or too many rows failed; its `.simulations` holds the rows
            done before, as this function would have returned them.
        KeyboardInterrupt: on Ctrl-C, after what is in progress was finished and stored (SIGTERM: exit with code 143).
    """
    n, seed = _check_arguments(simulator, n, seed, workers, chunk_rows)
    allowed = _allowed(n, max_failures, time_limit)
    opened = Store(store) if store is not None and (Path(store) / "zarr.json").exists() else None
    if seed is None:
        seed = opened.info.seed if opened is not None else fresh_seed()
    plan = _plan(simulator, n, proposal, design, seed or 0)
    simulator.check_rows(n, plan.proposal)
    if opened is not None:
        _check_same(opened, plan)
    example, quick = (opened[:1].columns(), False) if opened else try_out(plan, time_limit)
    ours = type(simulator).__module__.startswith("sbi_core.") and not simulator.runs_foreign_code
    chunk = opened.chunk_rows if opened is not None else chunk_rows or _chunk_rows(simulator.rows_per_seed, n)
    if store is not None and opened is None:
        opened = Store.create(store, plan.info, example, chunk)
    plan = replace(plan, example={name: column[:1] for name, column in example.items()}, chunk_rows=chunk)

    done = opened.committed() if opened is not None else {}
    wanted = {k: min(chunk, n - k * chunk) for k in range(-(-n // chunk))}
    todo = {k: rows for k, rows in wanted.items() if done.get(k, 0) < rows}
    if opened is not None and todo:
        opened.reserve(n)
    known = opened.failures if opened is not None and todo else {}
    failures = {row: text for row, text in known.items() if row // chunk not in todo}
    tasks = [Task(k, rows, done.get(k, 0), allowed - len(failures), time_limit) for k, rows in todo.items()]
    parts: dict[int, Part] = {}
    finished = sum(min(done.get(k, 0), rows) for k, rows in wanted.items())
    with (
        stoppable() as stop,
        tqdm(total=n, initial=finished, desc=simulator.name, unit="sim", disable=not progress) as bar,
    ):
        for k, part in run_tasks(plan, tasks, None if opened is None else opened.path, workers, stop):
            parts[k] = part
            if part.columns:
                bar.update(len(part.columns["theta"]) - done.get(k, 0))
            failures |= part.failures
    error = next((part.error for part in parts.values() if part.error), None)
    made: Any = opened
    if opened is None:
        rows = [Simulations(**parts[k].columns, info=plan.info) for k in sorted(parts) if parts[k].columns]
        made = replace(Simulations.concat(rows), failures=failures) if rows else None
    if error:
        error.simulations = made or None
        raise error
    if stop.signal:
        kept = (
            f"{len(made)} rows are in {opened.path}; the same call goes on"
            if opened is not None
            else "give store= to keep rows"
        )
        print(f"{simulator.name}: interrupted; {kept}.", file=sys.stderr)
        end(stop)
    if todo and failures:
        _warn(made, n, failures)
    if quick and not ours and not _repeats(plan, example, time_limit):
        warnings.warn(
            f"simulator '{simulator.name}' gives other rows for the same seed: it draws random numbers from elsewhere "
            "than its generator (numpy.random.default_rng() without a seed, the clock, threads), or remembers earlier "
            "calls. Its rows cannot be made again.",
            SbiWarning,
            stacklevel=2,
        )
    return made


def _allowed(n: int, max_failures: int | None, time_limit: float | None) -> int:
    if max_failures is not None and (not isinstance(max_failures, int | np.integer) or max_failures < 0):
        raise InputError(f"max_failures = {max_failures!r}, expected a whole number from 0 up, or None for n / 100.")
    if time_limit is not None and not (isinstance(time_limit, int | float) and 0 < time_limit < math.inf):
        raise InputError(f"time_limit = {time_limit!r}, expected a positive number of seconds for a row, or None.")
    if time_limit is not None and not hasattr(signal, "SIGALRM"):
        raise InputError(f"time_limit = {time_limit}: this system cannot interrupt a call (no SIGALRM); leave it out.")
    return n // 100 if max_failures is None else int(max_failures)


def _repeats(plan: Plan, example: Mapping[str, Tensor], time_limit: float | None) -> bool:
    """Whether another trial call gives the same rows, bit for bit; what is done stands, even if it fails now."""
    try:
        again, _ = try_out(replace(plan, example={}), time_limit)
    except SimulatorError:
        return True
    same = (column.numpy().tobytes() == again[name].numpy().tobytes() for name, column in example.items())
    return again.keys() == example.keys() and all(same)


def _warn(made: Any, n: int, failures: Mapping[int, str]) -> None:
    first = min(failures)
    place = made[:] if isinstance(made, Simulations) else made[made.column("row") == first]
    theta = place.theta[place.row == first][0].tolist()
    warnings.warn(
        f"{len(failures)} of {n} simulations failed and are NaN; the first is row {first}, theta = {theta}: it "
        f"{failures[first]}. All are in .failures.",
        SbiWarning,
        stacklevel=3,
    )


def _chunk_rows(rows_per_seed: int, n: int) -> int:
    """About a hundred chunks a campaign, of 100 to 10,000 rows, in whole blocks."""
    wanted = min(max(n // 100, 100), 10_000)
    return -(-wanted // rows_per_seed) * rows_per_seed


def _check_arguments(
    simulator: Simulator, n: Any, seed: Any, workers: int, chunk_rows: int | None
) -> tuple[int, int | None]:
    if not isinstance(simulator, Simulator):
        raise InputError(
            f"simulator: expected a Simulator, got {type(simulator).__name__}. Wrap a function in FunctionSimulator."
        )
    if not isinstance(n, int | np.integer) or n < 1:
        raise InputError(f"simulations: n = {n!r}, expected at least 1.")
    if seed is not None and (not isinstance(seed, int | np.integer) or seed < 0):
        raise InputError(f"seed = {seed!r}, expected a whole number from 0 up, or None.")
    if workers < 1:
        raise InputError(f"workers = {workers}, expected at least 1.")
    if chunk_rows is not None and (chunk_rows < 1 or chunk_rows % simulator.rows_per_seed):
        raise InputError(
            f"chunk_rows = {chunk_rows}, expected a multiple of rows_per_seed = {simulator.rows_per_seed}: a chunk "
            "holds whole seed blocks."
        )
    return int(n), None if seed is None else int(seed)


def _plan(simulator: Simulator, n: int, proposal: Any, design: Any, seed: int) -> Plan:
    proposal = simulator.prior if proposal is None else proposal
    if isinstance(proposal, Distribution):
        check_prior(proposal, simulator.parameters, "proposal")
    else:
        proposal = _fixed_rows("proposal", proposal, names(simulator.parameters), n)
    if design is not None:
        if not simulator.designs:
            raise InputError(f"design was given, but simulator '{simulator.name}' has none.")
        if isinstance(design, Distribution):
            check_prior(design, simulator.designs, "design")
        else:
            design = _fixed_rows("design", design, names(simulator.designs), n)
    info = Info(
        parameters=simulator.parameters,
        designs=simulator.designs if design is not None else (),
        proposal=proposal if isinstance(proposal, Distribution) else None,
        categories=simulator.categories,
        simulator=simulator.name,
        version=simulator.version,
        settings=dict(simulator.settings) | ({} if isinstance(proposal, Distribution) else {"theta": _plain(proposal)}),
        seed=seed,
        design=describe(design) if isinstance(design, Distribution) else _plain(design),
        rows_per_seed=simulator.rows_per_seed,
        contrasts=simulator.contrasts,
    )
    return Plan(simulator, proposal, design, seed, info, n=n)


def _fixed_rows(what: str, value: Any, axes: list[str], n: int) -> Tensor:
    rows = to_column("theta", value)
    if rows.shape not in ((len(axes),), (n, len(axes))):
        raise InputError(
            f"{what} has shape {tuple(rows.shape)}; expected ({len(axes)},) or ({n}, {len(axes)}) for {axes}, or a "
            "torch.distributions.Distribution."
        )
    return rows


def _check_same(store: Store, plan: Plan) -> None:
    """A store is continued only by the campaign that began it."""
    found, asked = store.provenance, json.loads(json.dumps(plan.info.to_json()))
    different = [f"{key}: found {found[key]!r}, asked {asked[key]!r}" for key in found if found[key] != asked[key]]
    if different:
        code = " (Of functions, by their byte code and what they read: a counter or cache may be _hidden.)"
        raise StoreError(
            f"{store.path} belongs to another campaign ({'; '.join(different)}). Choose another folder, or ask for the "
            f"same.{code if plan.simulator.runs_foreign_code or 'settings' in str(different) else ''}"
        )
    if store.chunk_rows % (size := plan.simulator.rows_per_seed):  # a store that does not know its rows_per_seed
        raise StoreError(
            f"{store.path} has chunks of {store.chunk_rows} rows, which rows_per_seed = {size} does not divide. Choose "
            "another folder, or set rows_per_seed as it was."
        )
