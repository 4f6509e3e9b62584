"""What a study of `sbi-design` was asked, and what it has found."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributions import Distribution

from sbi_core.command import Asked
from sbi_core.design.choice import Cost, Utility
from sbi_core.design.experiment import Experiment, Loop
from sbi_core.design.information import contrastive_bound, posterior_gain
from sbi_core.inference import Posterior
from sbi_core.parameters import Parameter
from sbi_core.results import LEVEL, sentences
from sbi_core.settings import DESIGN
from sbi_core.simulator import Simulator
from sbi_core.store import package_versions


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
        final = [loop.posterior.stddev for loop in self.baselines]
        return {
            "result": self.headline(),
            "stopped": self.loop.stopped,
            "rounds": [_round(one, self.study.simulator) for one in self.loop.experiments],
            "predicted over realised": {"value": ratio[0], "error": ratio[1], "rounds": len(asked)},
            "truth": None if self.study.truth is None else named(axes, self.study.truth),
            "sd of random designs": [named(axes, sd) for sd in final],
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


def _round(one: Experiment, simulator: Simulator) -> dict[str, Any]:
    """One round as plain data."""
    low, high = one.posterior.credible_interval(LEVEL)
    gain = one.predicted
    return {
        "design": named(simulator.designs, one.design),
        "predicted": None if gain is None else {"value": gain.value, "error": gain.error, "method": gain.method},
        "realised": one.realised,
        "mean": named(simulator.parameters, one.posterior.mean),
        "sd": named(simulator.parameters, one.posterior.stddev),
        "low": named(simulator.parameters, low),
        "high": named(simulator.parameters, high),
        "verdicts": dict(one.posterior.verdicts),
    }


def named(axes: Sequence[Parameter], values: Tensor) -> dict[str, float]:
    """Values (K,) by the names of their axes."""
    return {axis.name: float(value) for axis, value in zip(axes, values, strict=True)}
