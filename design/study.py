"""A study of `sbi-design`: the loop, what it is compared with, and what is left of it in the run folder."""

import inspect
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.command import Asked
from sbi_core.design.choice import Cost, Utility
from sbi_core.design.experiment import Experiment, Loop
from sbi_core.design.information import contrastive_bound, posterior_gain
from sbi_core.design.learning import learn
from sbi_core.design.loop import pooled, run_loop
from sbi_core.design.nature import Folder, Hidden, Nature
from sbi_core.errors import InputError
from sbi_core.estimators import load_estimator
from sbi_core.events import Events
from sbi_core.inference import Posterior
from sbi_core.priors import UniformPrior, describe
from sbi_core.results import LEVEL, sentences
from sbi_core.run_folder import write_json, write_npz, write_record
from sbi_core.seeding import derived_seed, seeded
from sbi_core.settings import DESIGN
from sbi_core.simulator import Simulator
from sbi_core.store import package_versions

SAMPLES = 10_000
"""Posterior samples that are written."""


@dataclass(frozen=True)
class Study(Asked):
    """What is to be done: the settings, with their objects.

    Attributes:
        simulator: one experiment; `Events` for runs.
        prior: the first belief.
        utility: what an experiment is wanted for.
        cost: of a design; `None` for 1.
        candidates: designs to choose from, (C, K); `None` searches the box.
        start: designs of the first rounds, (S, K).
        truth: theta of a simulated nature, (D,); `None` asks for answers.
    """

    simulator: Simulator
    prior: Distribution
    utility: Utility
    cost: Cost | None
    candidates: Tensor | None
    start: Tensor | None
    truth: Tensor | None

    @property
    def in_nats(self) -> bool:
        """Whether experiments are wanted for information, which they are then told to have brought."""
        return getattr(self.utility, "func", self.utility) in (posterior_gain, contrastive_bound)

    @property
    def compared(self) -> int:
        """How many loops of random designs are to be run: nobody's own experiment is repeated for that."""
        return 0 if self.truth is None else int(self.plain["baselines"])

    @property
    def answers(self) -> Path:
        """The folder where outcomes are dropped."""
        return Path(self.plain["answers"] or self.folder / "answers")


@dataclass(frozen=True)
class Findings:
    """What a study has found.

    Attributes:
        study: what was asked.
        loop: its rounds.
        baselines: loops of random designs at the same truth.
        ended: why others of these ended before they were done.
        exact: posterior of the same outcomes by the exact likelihood, where an estimator was learned.
        learned: how the estimator was learned, as plain data; `None` if the exact likelihood was read.
        seconds: stage -> wall time.
    """

    study: Study
    loop: Loop
    baselines: tuple[Loop, ...]
    ended: tuple[str, ...]
    exact: Posterior | None
    learned: Mapping[str, Any] | None
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def waiting(self) -> bool:
        """Whether the next step is the experimenter's."""
        return self.study.truth is None and self.loop.stopped.startswith("waiting")

    def headline(self) -> str:
        """The result in one line."""
        done = len(self.loop.experiments)
        said = "; ".join(sentences(self.loop.posterior)) if done else "nothing has been observed"
        if self.waiting:
            question = json.loads((self.study.answers / f"{done:03d}.ask.json").read_text())
            at = ", ".join(f"{name} = {value:.6g}" for name, value in question["design"].items())
            where = self.study.answers / f"{done:03d}.npy (or .csv, .npz)"
            targets = {group: (self.study.plain.get(group) or {}).get("_target_", "") for group in DESIGN.groups}
            code = [f" {group}._target_={target}" for group, target in targets.items() if "." in target]
            go_on = f"Write its outcome to {where}, and go on with run_dir={self.study.folder}{''.join(code)}"
            return f"{said}. Next experiment: {at}. {go_on}"
        return f"{said} after {done} experiment{'s' if done != 1 else ''} ({self.loop.stopped})"

    def summary(self) -> dict[str, Any]:
        """Plain data for `summary.json`."""
        asked = [one for one in self.loop.experiments if one.predicted is not None]
        known = self.study.in_nats and len(asked) > 1
        ratio = self.loop.predicted_over_realised() if known else (math.nan, math.nan)
        axes = self.study.simulator.parameters
        final = [loop.posterior.stddev.tolist() for loop in self.baselines]
        return {
            "result": self.headline(),
            "stopped": self.loop.stopped,
            "rounds": [_round(one, self.study.simulator) for one in self.loop.experiments],
            "predicted over realised": {"value": ratio[0], "error": ratio[1], "rounds": len(asked)},
            "truth": None if self.study.truth is None else _named(axes, self.study.truth),
            "sd of random designs": [_named(axes, sd) for sd in final],
            "exact": None if self.exact is None else sentences(self.exact),
            "learned": self.learned,
            "flags": self.flags(),
            "seed": self.study.seed,
            "seconds": dict(self.seconds),
            "versions": package_versions(),
            "settings": dict(self.study.settings),
        }

    def flags(self) -> list[str]:
        """What a careful reader should know, in sentences."""
        found = list(self.loop.flags)
        for number, one in enumerate(self.loop.experiments):
            said = [*(one.choice.flags if one.choice else ()), *(one.predicted.flags if one.predicted else ())]
            found += [f"round {number}: {text}" for text in dict.fromkeys([*said, *one.posterior.flags])]
        if self.ended:
            many = f"{len(self.ended)} of {self.study.compared} loops of random designs"
            found.append(f"{many} could not be run to their end, the first because: {self.ended[0]}")
        return found


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
        widths = _named(study.simulator.parameters, one.posterior.stddev)
        now = ", ".join(f"{name} {value:.3g}" for name, value in widths.items())
        where = ", ".join(
            f"{name} = {value:.5g}" for name, value in _named(study.simulator.designs, one.design).items()
        )
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


def _round(one: Experiment, simulator: Simulator) -> dict[str, Any]:
    """One round as plain data."""
    low, high = one.posterior.credible_interval(LEVEL)
    gain = one.predicted
    return {
        "design": _named(simulator.designs, one.design),
        "predicted": None if gain is None else {"value": gain.value, "error": gain.error, "method": gain.method},
        "realised": one.realised,
        "mean": _named(simulator.parameters, one.posterior.mean),
        "sd": _named(simulator.parameters, one.posterior.stddev),
        "low": _named(simulator.parameters, low),
        "high": _named(simulator.parameters, high),
        "verdicts": dict(one.posterior.verdicts),
    }


def _named(axes: Any, values: Any) -> dict[str, float]:
    return {axis.name: float(value) for axis, value in zip(axes, values, strict=True)}


@contextmanager
def _timed(stage: str, clock: dict[str, float]) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    clock[stage] = time.perf_counter() - begun


def _say(study: Study, text: str) -> None:
    if study.plain["progress"]:
        print(f"{DESIGN.name}: {text}", file=sys.stderr, flush=True)
