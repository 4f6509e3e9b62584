"""Running a simulator many times: chunk k is the unit of work, of write and of resume; a block that of seed."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution
from tqdm import tqdm

from sbi_core.columns import to_column
from sbi_core.errors import InputError, SimulatorError, StoreError
from sbi_core.parameters import names
from sbi_core.plan import Plan, complete
from sbi_core.priors import check_prior, describe
from sbi_core.seeding import fresh_seed
from sbi_core.simulations import Info, Simulations
from sbi_core.simulator import Simulator, _plain
from sbi_core.store import Store


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

    Returns:
        `Simulations` with n rows, or the `Store` if `store` was given.

    Raises:
        InputError: for arguments that do not fit.
        StoreError: if the store belongs to another campaign.
        SimulatorError: if the simulator broke its contract; its `.simulations` holds the rows done before.
    """
    n, seed = _check_arguments(simulator, n, seed, workers, chunk_rows)
    opened = Store(store) if store is not None and (Path(store) / "zarr.json").exists() else None
    if seed is None:
        seed = opened.info.seed if opened is not None else fresh_seed()
    plan = _plan(simulator, n, proposal, design, seed or 0)
    if opened is not None:
        _check_same(opened, plan)
    example = opened[:1].columns() if opened else plan.trial()
    chunk = opened.chunk_rows if opened is not None else chunk_rows or _chunk_rows(simulator.rows_per_seed, n)
    if store is not None and opened is None:
        opened = Store.create(store, plan.info, example, chunk)
    shapes = {name: tuple(column.shape[1:]) for name, column in example.items()}
    plan = replace(plan, shapes=shapes, chunk_rows=chunk)

    done = opened.committed() if opened is not None else {}
    wanted = {k: min(chunk, n - k * chunk) for k in range(-(-n // chunk))}
    todo = {k: rows for k, rows in wanted.items() if done.get(k, 0) < rows}
    if opened is not None and todo:
        opened.reserve(n)
    parts: dict[int, dict[str, Tensor]] = {}
    failure: SimulatorError | None = None
    finished = sum(min(done.get(k, 0), rows) for k, rows in wanted.items())
    with tqdm(total=n, initial=finished, desc=simulator.name, unit="sim", disable=not progress) as bar:
        for k, part, error in _run(plan, todo, done, None if opened is None else opened.path, workers):
            failure = failure or error
            if part:
                parts[k] = part
                bar.update(len(part["theta"]) - done.get(k, 0))
    if opened is not None:
        if failure:
            failure.simulations = opened[:]
            raise failure
        return opened
    made = [Simulations(**parts[k], info=plan.info) for k in sorted(parts)]
    if failure:
        failure.simulations = Simulations.concat(made) if made else None
        raise failure
    return Simulations.concat(made)


def _chunk(
    plan: Plan, k: int, rows: int, done: int, path: Path | None
) -> tuple[dict[str, Tensor], SimulatorError | None]:
    """Draw the first `rows` rows of chunk k and write them; on an error, what is complete, unless `done` is more."""
    size = plan.simulator.rows_per_seed
    first = k * plan.chunk_rows
    blocks: list[dict[str, Tensor]] = []
    failure = None
    for number in range(first // size, -(-(first + rows) // size)):
        try:
            blocks.append(plan.block(number))
        except SimulatorError as error:
            failure = error
            break
        except Exception as error:
            failure = SimulatorError(f"simulator '{plan.simulator.name}' raised {type(error).__name__}: {error}")
            failure.__cause__ = error
            break
    if len(blocks) * size <= done:
        return {}, failure
    columns = {name: torch.cat([block[name] for block in blocks])[:rows] for name in blocks[0]}
    columns = complete(columns, first, plan.info).columns()
    if path is not None:
        Store(path).write(k, columns)
        columns = {"theta": columns["theta"]}
    return columns, failure


def _run(
    plan: Plan, todo: dict[int, int], done: dict[int, int], path: Path | None, workers: int
) -> Iterator[tuple[int, dict[str, Tensor], SimulatorError | None]]:
    """Yield chunks as they come; after an error no new chunk is begun."""
    if workers == 1 or len(todo) < 2:
        for k, rows in todo.items():
            part, error = _chunk(plan, k, rows, done.get(k, 0), path)
            yield k, part, error
            if error:
                return
        return
    from loky import ProcessPoolExecutor, as_completed

    with ProcessPoolExecutor(max_workers=workers) as pool:
        futures = {pool.submit(_chunk, plan, k, rows, done.get(k, 0), path): k for k, rows in todo.items()}
        for future in as_completed(futures):
            if future.cancelled():
                continue
            part, error = future.result()
            if error:
                for other in futures:
                    other.cancel()
            yield futures[future], part, error


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
        raise StoreError(
            f"{store.path} belongs to another campaign ({'; '.join(different)}). Choose another folder, or ask for the "
            "same."
        )
