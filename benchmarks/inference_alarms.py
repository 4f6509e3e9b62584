"""Do the alarms of `diagnose` ring, and only then? Exact posteriors, and ones that are wrong in a known way.

    python benchmarks/inference_alarms.py                 # 20 seeds of each fault, 100 clean runs of each world
    python benchmarks/inference_alarms.py --seeds 2 --clean 4

Every run compares n = 1,000 truths with 99 draws each. The worlds are those of the tests: a linear-Gaussian one with
two unequal parameters, one with three correlated ones, and one whose posterior has two modes, of weights .8 and .2.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "inference" / "checks"))

from sabotage import CORRELATED, FAULTS, linear, two_modes

from sbi_core.inference.checks.calibration import calibrate
from sbi_core.inference.checks.pairs import Pairs

WORLDS: dict[str, tuple[Callable[..., Pairs], tuple[str, ...]]] = {
    "two unequal": (linear, FAULTS[1:]),
    "three correlated": (partial(linear, matrix=CORRELATED), FAULTS[1:]),
    "two modes": (two_modes, ("minor", "major", "any")),
}


def row(make: Callable[..., Pairs], fault: str, seeds: range) -> str:
    """How many runs failed, and which checks how often."""
    rang: Counter[str] = Counter()
    for seed in seeds:
        found = calibrate(make(fault, seed=seed), seed=seed)
        rang.update({check.name.split(" at ")[0] for check in found.failed} | ({"any"} if not found.passed else set()))
    any_ = rang.pop("any", 0)
    return f"{any_} of {len(seeds)}  " + ", ".join(f"{name} {count}" for name, count in rang.most_common())


def main() -> None:
    """Print the table, row by row."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, default=20)
    options.add_argument("--clean", type=int, default=100)
    asked = options.parse_args()
    for world, (make, faults) in WORLDS.items():
        for fault in faults:
            print(f"{world:17} {fault:8} found in {row(make, fault, range(asked.seeds))}", flush=True)
        print(f"{world:17} {'clean':8} alarms in {row(make, '', range(1000, 1000 + asked.clean))}", flush=True)


if __name__ == "__main__":
    main()
