"""A study of `sbi-design` is run: the loop, what it is compared with, and what is left of it in the run folder."""

import inspect
import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch

from sbi_core.design.experiment import Experiment, Loop
from sbi_core.design.findings import Findings, Study, named
from sbi_core.design.learning import learn
from sbi_core.design.loop import pooled, run_loop
from sbi_core.design.nature import Folder, Hidden, Nature
from sbi_core.errors import InputError
from sbi_core.estimators import load_estimator
from sbi_core.events import Events
from sbi_core.inference import Posterior
from sbi_core.priors import UniformPrior, describe
from sbi_core.run_folder import write_json, write_npz, write_record
from sbi_core.seeding import derived_seed, seeded
from sbi_core.settings import DESIGN
from sbi_core.store import package_versions

SAMPLES = 10_000
"""Posterior samples that are written."""


def run_study(study: Study) -> Findings:
    """Learn if that is asked, run the loop and what it is compared with, and write the report.

    Everything is kept in the run folder as it comes; run again, a study goes on where it was.

    Raises:
        SbiError: whatever went wrong.
    """
    from sbi_core.design.report import write_report  # loads matplotlib

    clock: dict[str, float] = {}
    study.folder.mkdir(parents=True, exist_ok=True)
    record = {"settings": study.settings, "seed": study.seed, "prior": describe(study.prior)}
    write_record(DESIGN, study.folder, {**record, "versions": package_versions()})
    with _timed("learn", clock):
        estimator, learned = _estimator(study)
    with _timed("run the loop", clock):
        loop = _loop(study, estimator)
    with _timed("compare", clock):
        baselines, ended = _baselines(study, estimator, loop)
        findings = Findings(study, loop, baselines, ended, _exact(study, loop), learned, clock)
    if loop.experiments:
        with seeded(study.seed):
            samples = loop.posterior.sample(torch.Size([SAMPLES]))
        axes = [axis.name for axis in study.simulator.parameters]
        write_npz(study.folder / "posterior.npz", samples=samples, parameters=axes)
    write_json(study.folder / "summary.json", findings.summary())
    write_report(study.folder / "report.html", findings)
    return findings


def _estimator(study: Study) -> tuple[Any, dict[str, Any] | None]:
    """What reads outcomes, and how it was learned."""
    n, model, notes = study.plain["n_simulations"], study.folder / "model", study.folder / "learned.json"
    if n is None:
        return None, None
    one = study.simulator.simulator if isinstance(study.simulator, Events) else study.simulator
    low, high = torch.tensor([[axis.low, axis.high] for axis in one.designs], dtype=torch.float64).T
    at: Any = UniformPrior(one.designs)
    if study.candidates is not None:
        at = study.candidates if study.start is None else torch.cat([study.candidates, study.start]).unique(dim=0)
        low, high = at.min(0).values, at.max(0).values
    if notes.is_file():
        found: dict[str, Any] = json.loads(notes.read_text(encoding="utf-8"))
        ends = torch.tensor(found["designs"], dtype=torch.float64)
        if bool((low < ends[0]).any() or (high > ends[1]).any()):
            raise InputError(
                f"candidates and start: the estimator in {model} was learned at designs from {found['designs'][0]} to "
                f"{found['designs'][1]}, and some lie beyond. Choose another run_dir, or designs in between."
            )
        return load_estimator(model), found
    _say(study, f"learn from {n:,} simulated events")
    options = {key: study.plain[key] for key in ("labels", "workers", "device")}
    options |= {key: value for key, value in study.plain["training"].items() if value is not None}
    learned = learn(one, study.prior, n, designs=at, seed=derived_seed(study.seed, 1), **options)
    learned.estimator.save(model)
    found = {"labels": learned.labels, "simulations": n, "excess": learned.excess, "loss": learned.fit.loss}
    found |= {"certificate": asdict(learned.certificate), "flags": list(learned.fit.flags)}
    found |= {"designs": [low.tolist(), high.tolist()]}
    write_json(notes, found)
    return learned.estimator, found


def _loop(study: Study, estimator: Any) -> Loop:
    """The loop itself."""
    plain, count = study.plain, 0
    truth, seed = study.truth, derived_seed(study.seed, 2)
    nature: Nature = Folder(study.answers, study.simulator.designs)
    if truth is not None:
        nature = Hidden(study.simulator, truth, seed=seed)

    def said(one: Experiment) -> None:
        nonlocal count
        count += 1
        expected = "" if one.predicted is None else f", {one.predicted.value:.3g} +- {one.predicted.error:.1g} expected"
        widths = named(study.simulator.parameters, one.posterior.stddev)
        now = ", ".join(f"{name} {value:.3g}" for name, value in widths.items())
        where = ", ".join(f"{name} = {value:.5g}" for name, value in named(study.simulator.designs, one.design).items())
        _say(study, f"round {count - 1}: {where}; {one.realised:.3g} nats{expected}; sd {now}")

    accepted = inspect.signature(study.utility).parameters
    options = {key: plain["gain"][key] for key in ("n", "inner") if key in accepted}
    return run_loop(
        study.simulator,
        nature,
        candidates=study.candidates,
        utility=study.utility,
        rounds=plain["rounds"],
        spend=math.inf if plain["spend"] is None else plain["spend"],
        cost=study.cost,
        width=plain["width"],
        noise=plain["noise"],
        folder=study.folder / "loop",
        workers=plain["workers"],
        callback=said,
        budget=plain["gain"]["budget"],
        confirm=plain["gain"]["confirm"],
        **_common(study, estimator),
        **options,
    )


def _common(study: Study, estimator: Any) -> dict[str, Any]:
    """What the loop and those it is compared with share."""
    return {
        "estimator": estimator,
        "prior": study.prior,
        "start": study.start,
        "seed": derived_seed(study.seed, 0),
        "inference": study.plain["inference"],
    }


def _baselines(study: Study, estimator: Any, loop: Loop) -> tuple[tuple[Loop, ...], tuple[str, ...]]:
    """As many rounds at random designs, of those that can be as far as the loop has seen; and why others ended."""
    choices = [one.choice for one in loop.experiments if one.choice is not None]
    candidates, found, ended = study.candidates, [], []
    if candidates is not None:
        bad = [one.candidates[k] for one in choices[:1] for k in one.excluded]
        candidates = candidates[[not any(torch.equal(design, other) for other in bad) for design in candidates]]
    for k in range(study.compared if loop.experiments else 0):
        seed, nature = derived_seed(study.seed, 4, k), derived_seed(study.seed, 5, k)
        options = {**_common(study, estimator), "seed": seed, "folder": study.folder / "random" / f"{k:03d}"}
        options |= {"policy": "random", "candidates": candidates, "rounds": len(loop.experiments)}
        try:
            found.append(run_loop(study.simulator, Hidden(study.simulator, study.truth, seed=nature), **options))
        except Exception as error:  # of a user's simulator at a design that the loop would have excluded
            ended.append(f"{type(error).__name__}: {error}")
    return tuple(found), tuple(ended)


def _exact(study: Study, loop: Loop) -> Posterior | None:
    """The exact posterior of the same outcomes, if there is one and another was used."""
    if study.plain["n_simulations"] is None or not study.simulator.is_exact or not loop.experiments:
        return None
    outcomes = [(one.design, one.x_obs, one.n_events) for one in loop.experiments]
    return pooled(study.simulator, study.prior, outcomes, seed=study.seed, inference=study.plain["inference"])


@contextmanager
def _timed(stage: str, clock: dict[str, float]) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    clock[stage] = time.perf_counter() - begun


def _say(study: Study, text: str) -> None:
    if study.plain["progress"]:
        print(f"{DESIGN.name}: {text}", file=sys.stderr, flush=True)
