"""Are the posteriors of trained estimators calibrated? One cell: a world, a head, a seed; its row joins a csv file.

    python benchmarks/inference_calibration.py --world galton --head ratio --seed 0
    python benchmarks/inference_calibration.py --world slcp --members 5           # an ensemble of so many trainings
    python benchmarks/inference_calibration.py --world slcp --loss alices         # another loss of the same head
    python benchmarks/inference_calibration.py --world slcp --head posterior --repair
    python benchmarks/inference_calibration.py --table

A head is trained on 10,000 simulations with the defaults, then `diagnose` draws fresh pairs; all members of an ensemble
see the same 10,000. Coverage must be no lower than nominal less 4 binomial standard errors and no higher than nominal
plus .08, and the ranks of each parameter must stay inside their 99.9% band. The mean of log q(theta) stands beside it,
with the prior's: a posterior equal to the prior is calibrated too. "exact" reads the simulator's own likelihood, and
tells the sampler's errors from the head's. With --repair, coverage at the recalibrated levels is measured on as many
pairs again.
"""

import argparse
import csv
import time
import warnings
from pathlib import Path
from typing import Any

from sbi_core import Simulator, simulate
from sbi_core.errors import SbiWarning
from sbi_core.estimators import (
    Ensemble,
    LikelihoodEstimator,
    PosteriorEstimator,
    RatioEstimator,
    alices,
    carl,
    fit,
    nle,
    npe,
    nre,
    nre_gold,
    scandal,
)
from sbi_core.inference.checks.diagnose import diagnose
from sbi_core.inference.checks.diagnosis import Diagnosis
from sbi_core.inference.checks.pairs import posterior_draws
from sbi_core.inference.checks.ranks import compared, credibility
from sbi_core.parameters import names
from sbi_core.seeding import seeded
from sbi_core.simulators import SLCP, GaltonBoard, LinearGaussian, TwoMoons

TABLE = Path(__file__).parent / "inference_calibration.csv"
WORLDS = {"galton": GaltonBoard, "linear": lambda: LinearGaussian(2), "two_moons": TwoMoons, "slcp": SLCP}
HEADS: dict[str, tuple[Any, Any, Any]] = {  # the class, its loss with gold, its loss without
    "ratio": (RatioEstimator, nre_gold, nre),
    "likelihood": (LikelihoodEstimator, scandal, nle),
    "posterior": (PosteriorEstimator, npe, npe),
}
LOSSES = {loss.__name__: loss for loss in (alices, carl, nre, nre_gold, nle, scandal, npe)}
SIMULATIONS, LEVELS = 10_000, (0.5, 0.8, 0.9, 0.95)


def cell(
    world: str, head: str, seed: int, pairs: int, members: int = 1, other: str = "", repair: bool = False
) -> dict[str, Any]:
    """Train, diagnose, and say whether the bar is met."""
    simulator: Simulator = WORLDS[world]()
    started, estimator, method = time.process_time(), simulator, "exact"
    if head != "exact":
        kind, with_gold, without = HEADS[head]
        loss = LOSSES[other] if other else with_gold if simulator.has_gold else without
        data = simulate(simulator, SIMULATIONS, seed=1000 + seed, progress=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SbiWarning)
            options: dict[str, Any] = {"simulator": simulator, "progress": False}
            seeds = [1000 * seed + m for m in range(members)]
            each = [fit(kind.from_data(data), loss, data, seed=one, **options).estimator for one in seeds]
        estimator, method = each[0] if members == 1 else Ensemble(each), loss.__name__
    trained = time.process_time()
    found = diagnose(estimator, simulator, n=pairs, seed=seed, time_limit=36_000.0)
    seconds = {"training": round(trained - started, 1), "checks": round(time.process_time() - trained, 1)}
    first = {"world": world, "head": head, "loss": method, "members": members, "seed": seed, "pairs": pairs}
    repaired = _repaired(found, estimator, simulator) if repair else ""
    return {**first, **_bar(found, simulator), **seconds, "repaired": repaired}


def _repaired(found: Diagnosis, estimator: Any, simulator: Simulator) -> str:
    """Coverage on fresh pairs at the recalibrated levels, in joint standard errors from nominal."""
    fresh = simulate(simulator, found.pairs, seed=found.seed + 77_000, progress=False)
    pairs = posterior_draws(estimator, simulator.prior, fresh.theta, fresh.x, seed=1, time_limit=36_000.0)
    with seeded(1):
        level = credibility(pairs)
    each = [(nominal, float((level <= found.recalibration.level(nominal)).double().mean())) for nominal in LEVELS]
    error = [(2 * nominal * (1 - nominal) / len(pairs)) ** 0.5 for nominal in LEVELS]
    return "; ".join(f"{v:.3f} ({(v - nominal) / e:+.1f} se)" for (nominal, v), e in zip(each, error, strict=True))


def _bar(found: Diagnosis, simulator: Simulator) -> dict[str, Any]:
    covered = {f"coverage {level:g}": float((found.credibility <= level).double().mean()) for level in LEVELS}
    error = [4 * (level * (1 - level) / found.pairs) ** 0.5 for level in LEVELS]
    each = zip(LEVELS, covered.values(), error, strict=True)
    inside = all(level - far <= share <= level + 0.08 for level, share, far in each)
    about = names(simulator.parameters)
    rank_checks, _ = compared("ranks", about, found.ranks, 0.001 * len(about))
    uniform = all(check.passed for check in rank_checks)
    gain = next(check for check in found.checks if check.name == "information gained")
    return {
        **{name: round(share, 3) for name, share in covered.items()},
        "coverage met": inside,
        "ranks met": uniform,
        "log q": gain.text.split(":")[0].removeprefix("mean log q(theta) is "),
        "gain": round(gain.value, 3),
        "failed": "; ".join(dict.fromkeys(f"{check.name} {check.about}".strip() for check in found.failed)),
    }


def main() -> None:
    """Run one cell, or print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--world", choices=WORLDS, default="linear")
    options.add_argument("--head", choices=[*HEADS, "exact"], default="ratio")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--members", type=int, default=1)
    options.add_argument("--pairs", type=int, default=500)
    options.add_argument("--table", action="store_true")
    options.add_argument("--loss", choices=LOSSES, default="")
    options.add_argument("--repair", action="store_true")
    asked = options.parse_args()
    if not asked.table:
        row = cell(asked.world, asked.head, asked.seed, asked.pairs, asked.members, asked.loss, asked.repair)
        new = not TABLE.exists()
        with TABLE.open("a", newline="") as file:
            writer = csv.DictWriter(file, row)
            if new:
                writer.writeheader()
            writer.writerow(row)
    with TABLE.open() as file:
        for row in csv.DictReader(file):
            print("  ".join(f"{key} {value}" for key, value in row.items() if value))


if __name__ == "__main__":
    main()
