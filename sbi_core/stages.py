"""The stages of `sbi-run`; each is skipped if the run folder holds its result already."""

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.nn import Module

from sbi_core.campaign import simulate
from sbi_core.command import Asked
from sbi_core.errors import InputError, MissingGold, StoreError
from sbi_core.gold_check import check_gold
from sbi_core.inference import GridPosterior, infer
from sbi_core.observation import check_event, pad_events
from sbi_core.parameters import Parameter
from sbi_core.priors import describe, restore
from sbi_core.results import Results, compare_log_ratios, fresh_rows
from sbi_core.run_folder import write_json, write_npz, write_record
from sbi_core.run_limits import with_limits
from sbi_core.seeding import seeded
from sbi_core.self_check import with_checks
from sbi_core.settings import RUN
from sbi_core.simulations import Simulations
from sbi_core.simulator import Simulator
from sbi_core.store import Store, package_versions

SAMPLES = 10_000
"""Posterior samples that are written."""

SHOWN = 3000
"""Stored simulations that the report looks at."""


@dataclass(frozen=True)
class Job(Asked):
    """One run: its settings, with its objects.

    Attributes:
        trained: whether the folder holds a finished training.
        x_obs: the observation, (*), as far as its shape could be checked.
        fit: the training loop.
        load_estimator: its counterpart.
        simulator: the world; `None` for data made elsewhere.
        estimator: function of the data that makes an estimator.
        loss: the loss.
        prior: function of the parameters and the simulator's own prior that makes the prior.
    """

    trained: bool
    x_obs: Tensor | None
    fit: Callable[..., Any]
    load_estimator: Callable[..., Any]
    simulator: Simulator | None = None
    estimator: Callable[..., Any] | None = None
    loss: Callable[..., Any] | None = None
    prior: Callable[..., Distribution] | None = None


def run_stages(job: Job) -> Results:
    """Simulate, check gold, train, infer and report.

    Raises:
        SbiError: whatever went wrong; what was done before is kept in the folder.
    """
    clock: dict[str, float] = {}
    job.folder.mkdir(parents=True, exist_ok=True)
    write_record(RUN, job.folder, _record(job, job.record.get("prior")))
    with _timed("load" if job.trained or job.plain["data"] else "simulate", clock):
        data = _simulated(job)
    if data is not None and job.x_obs is not None:  # before the training, not after
        first = data[:1]
        options = {"categories": data.info.categories, "runs": first.n_events is not None}
        check_event(job.x_obs, first.x.shape[1:], iid=job.plain["iid"], **options)
    gold = None if job.trained else _checked(job, data, clock)
    with _timed("load" if job.trained else "train", clock, quiet=job.trained):
        estimator, training = _trained(job, data, gold)
    prior = _prior(job, data, estimator.axes)
    write_record(RUN, job.folder, _record(job, describe(prior)))
    results = _looked_at(job, data, estimator, prior, training)
    if job.x_obs is not None:
        with _timed("infer", clock):
            results = _inferred(job, results, estimator, prior, job.x_obs)
        if job.plain["limits"]["method"]:
            with _timed("limits", clock):
                results = with_limits(results, estimator, iid=job.plain["iid"], **job.plain["limits"])
        asked = job.plain["checks"]
        with _timed("check posteriors", clock, quiet=not (asked["pairs"] or asked.get("replicates"))):
            results = with_checks(results, estimator, prior, iid=job.plain["iid"], **asked, rows=_rows(job))
    with _timed("report", clock):
        from sbi_core.report import write_report  # loads matplotlib

        results = replace(results, seconds=clock)
        write_json(job.folder / "summary.json", results.summary())
        write_report(job.folder / "report.html", results)
    return results


def _record(job: Job, prior: Mapping[str, Any] | None) -> dict[str, Any]:
    return {"settings": job.settings, "seed": job.seed, "prior": prior, "versions": package_versions()}


def _rows(job: Job) -> dict[str, float | None]:
    """What the campaign allows, for any other number of rows."""
    asked = job.plain["campaign"]
    share = None if asked["max_failures"] is None else asked["max_failures"] / job.plain["n_simulations"]
    return {"failing": share, "time_limit": asked["time_limit"]}


def _simulated(job: Job) -> Any:
    """Simulations of this run; `None` if training is done and they are not here."""
    store = job.folder / "simulations.zarr"
    if job.plain["data"] is not None:
        return None if job.trained else _opened(job)
    if job.trained:
        return Store(store) if store.exists() else None
    if job.simulator is None:
        raise InputError("simulator: none was chosen.")
    proposal = job.prior(job.simulator.parameters, job.simulator.prior) if job.prior is not None else None
    return simulate(
        job.simulator,
        job.plain["n_simulations"],
        store=store,
        proposal=proposal,
        seed=job.seed,
        workers=job.plain["workers"],
        **job.plain["campaign"],
        progress=job.plain["progress"] and sys.stderr.isatty(),
    )


def _opened(job: Job) -> Any:
    """Simulations made elsewhere."""
    path, world = Path(job.plain["data"]), job.simulator
    ranges: Mapping[str, Any] = job.plain["parameters"] or {}
    named = tuple(Parameter(name, low, high) for name, (low, high) in ranges.items())
    parameters = world.parameters if world is not None else named or None
    categories = world.categories if world is not None else None
    if path.is_dir():
        return Store(path)
    if path.suffix == ".npz":
        return Simulations.from_npz(path, parameters=parameters, categories=categories)
    if path.suffix != ".csv":
        raise InputError(f"data = {path}: expected an npz or csv file, or a store.")
    if parameters is None:
        raise InputError(f"data = {path}: which columns are parameters? Say parameters='{{mass: [0.5, 2.0]}}'.")
    return Simulations.from_csv(path, parameters=parameters, categories=categories)


def _trained(job: Job, data: Any, gold: Mapping[str, Any] | None) -> tuple[Any, dict[str, Any]]:
    """The estimator and what is known about its training."""
    folder, notes = job.folder / "model", job.folder / "fit.json"
    if job.trained:
        try:
            training: dict[str, Any] = json.loads(notes.read_text(encoding="utf-8"))
        except ValueError as error:
            raise StoreError(f"{notes} is truncated or altered ({error}).") from None
        network = getattr(job.estimator, "keywords", {}).get("embedding")
        return job.load_estimator(folder, **({"embedding": network} if isinstance(network, Module) else {})), training
    if job.estimator is None or job.loss is None:
        raise InputError("estimator and loss: both are needed to train.")
    asked = {**job.plain["training"], "device": job.plain["device"]}
    options = {key: value for key, value in asked.items() if value is not None}
    fit = job.fit(
        job.estimator(data),
        job.loss,
        data,
        simulator=job.simulator,
        seed=job.seed,
        progress=job.plain["progress"] and sys.stderr.isatty(),
        gold_check=False,
        checkpoint=job.folder / "training",
        **options,
    )
    training = {name: getattr(fit, name) for name in ("loss", "best_epoch", "ended", "seed", "seconds", "history")}
    training |= {"flags": list(fit.flags), "rows": list(fit.rows), "simulations": len(data), "gold": gold}
    write_json(notes, training)
    fit.estimator.save(folder)
    shutil.rmtree(job.folder / "training", ignore_errors=True)
    return fit.estimator, training


def check_gold_exists(loss: Callable[..., Any] | None, simulator: Simulator | None) -> None:
    """Raise `MissingGold` if a loss needs what the simulator cannot give, before anything is simulated."""
    needed = [] if simulator is None else [name for name in _gold_needed(loss) if not simulator.may_give(name)]
    if needed and simulator is not None:
        raise MissingGold(
            f"the loss needs {' and '.join(needed)}, and simulator '{simulator.name}' has no log_joint. Use loss=carl, "
            "or give the simulator a log_joint."
        )


def _gold_needed(loss: Any) -> list[str]:
    needs = getattr(loss.func if isinstance(loss, partial) else loss, "needs", ())
    return [name for name in ("joint_log_ratio", "joint_score") if name in needs]


def _checked(job: Job, data: Any, clock: dict[str, float]) -> dict[str, Any] | None:
    """Check the gold if the loss will believe it; stop if it is wrong."""
    if not job.plain["gold_check"] or not _gold_needed(job.loss):
        return None
    with _timed("check gold", clock):
        try:
            check = check_gold(job.simulator, data, seed=job.seed)
        except MissingGold:
            return None  # the training says what is missing, and what to do
        write_json(job.folder / "gold.json", check.to_json())
        check.raise_if_failed()
    return check.to_json()


def _prior(job: Job, data: Any, parameters: tuple[Parameter, ...]) -> Distribution:
    known = restore(job.record.get("prior"))
    if known is not None:
        return known
    if job.prior is None:
        raise InputError("prior: the run folder does not say which one was used; name it again, with prior=...")
    own = job.simulator.prior if job.simulator is not None else None if data is None else data.info.proposal
    return job.prior(parameters, own)


def _looked_at(job: Job, data: Any, estimator: Any, prior: Distribution, training: dict[str, Any]) -> Results:
    """What is known before the observation is looked at."""
    world = job.simulator
    some = None if data is None else data[: min(SHOWN, len(data))]
    ratios = None
    if world is not None and world.is_exact:
        ratios = compare_log_ratios(estimator, world, fresh_rows(world, prior, seed=job.seed), seed=job.seed)
    elif world is not None and world.has_gold and some is not None:
        ratios = compare_log_ratios(estimator, world, some, seed=job.seed)
    notes = []
    if job.trained and world is None and job.settings.get("simulator"):
        notes.append("the simulator is code that was not named again, so it was not loaded: nothing exact is shown")
    versions = package_versions()
    if world is not None:
        versions[f"simulator {world.name}"] = world.version
    return Results(
        name=job.plain["name"],
        parameters=tuple(estimator.axes),
        settings=job.settings,
        seed=job.seed,
        versions=versions,
        simulator=world,
        data=some,
        n_simulations=training["simulations"],
        gold=training["gold"],
        training=training,
        ratios=ratios,
        notes=notes,
    )


def _inferred(job: Job, results: Results, estimator: Any, prior: Distribution, x_obs: Tensor) -> Results:
    iid, world = job.plain["iid"], job.simulator
    runs = estimator.needs_n_events
    x_obs = check_event(x_obs, estimator.x_shape, iid=iid, categories=estimator.categories, runs=runs)
    rows = x_obs if iid else x_obs[None]
    if runs:
        rows = pad_events(rows, estimator.x_shape, leading=1)[0]
    options = {"iid": iid, "seed": job.seed, **job.plain["inference"]}
    posterior: Any = infer(estimator, prior, x_obs, **options)
    exact = _exactly(world, prior, x_obs, options) if world is not None and world.is_exact else None
    write_npz(job.folder / "posterior.npz", x_obs=x_obs, **_arrays(posterior, exact, job.seed))
    if all(map(find_spec, ("xarray", "h5netcdf", "h5py"))):  # an extra
        posterior.to_netcdf(job.folder / "posterior.nc")
    return replace(results, posterior=posterior, exact=exact, x_obs=rows)


def _exactly(world: Simulator, prior: Distribution, x_obs: Tensor, options: Mapping[str, Any]) -> Any:
    """The posterior of the exact likelihood, which no flow of ours draws."""
    method = "auto" if options["method"] == "direct" else options["method"]
    return infer(world, prior, x_obs, **{**options, "method": method})


def _arrays(posterior: Any, exact: Any, seed: int) -> dict[str, Any]:
    """Draws of the posterior, and its density where it is known: on the grid, or at the draws."""
    with seeded(seed):
        samples = posterior.sample(torch.Size([SAMPLES]))
    names = [parameter.name for parameter in posterior.parameters]
    arrays: dict[str, Any] = {"samples": samples, "parameters": names}
    at, known = samples, {"log_density": posterior, "exact_log_density": exact}
    if isinstance(posterior, GridPosterior):
        points, _ = posterior.grid()
        at = torch.stack(torch.meshgrid(*points, indexing="ij"), -1)
        arrays |= {f"grid_{name}": axis for name, axis in zip(names, points, strict=True)}
    with torch.no_grad():
        return arrays | {name: source.log_prob(at) for name, source in known.items() if source is not None}


@contextmanager
def _timed(stage: str, clock: dict[str, float], *, quiet: bool = False) -> Iterator[None]:
    if not quiet:
        print(f"sbi-run: {stage}", file=sys.stderr, flush=True)
    begun = time.perf_counter()
    yield
    clock[stage] = clock.get(stage, 0.0) + time.perf_counter() - begun
