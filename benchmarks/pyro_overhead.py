"""What a Pyro program costs beside the same simulator by hand: CPU time of rows and of gold, in one run.

    python benchmarks/pyro_overhead.py [--rows 50000] [--repeats 7]

Rounds alternate between all candidates; the table has medians per row, and the median of the ratios within a round. One
thread. The programs: the Galton board (20 draws a row, x the last position), and a Gaussian latent seen with noise; and
the board once more in plain Python, one ball at a time, whose gold is stored with the rows.
"""

import argparse
import math
import statistics
import time
import warnings
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from sbi_core import SbiWarning, Simulations, Simulator, joint_log_ratio, joint_score, simulate
from sbi_core.simulators import GaltonBoard, LinearGaussian, PyroSimulator

ROWS, NAILS = 20, 31


def galton(theta: Tensor) -> None:
    at = torch.full((len(theta),), 15.0).double()
    for row in range(ROWS):
        tilt, side = math.sin(math.pi * row / (ROWS - 1)), 2 * at / (NAILS - 1) - 1
        left = (1 - tilt) / 2 + tilt * torch.sigmoid(10 * theta[:, 0] * side)
        at = at + 1 - row % 2 - pyro.sample(f"left_{row}", dist.Bernoulli(left))
    pyro.deterministic("x", at)


def ball(theta: Tensor) -> None:
    at = 15
    for row in range(ROWS):
        tilt, side = math.sin(math.pi * row / (ROWS - 1)), 2 * at / (NAILS - 1) - 1
        left = (1 - tilt) / 2 + tilt * torch.sigmoid(10 * theta[0] * side)
        at += 1 - row % 2 - int(pyro.sample(f"left_{row}", dist.Bernoulli(left)))
    pyro.deterministic("x", torch.tensor(float(at)))


def gaussian(theta: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(theta[:, 0], 2.0))
    pyro.sample("x", dist.Normal(z, 1.0))


def made(simulator: Simulator, n: int) -> Simulations:
    return simulate(simulator, n, seed=0, progress=False)  # type: ignore[no-any-return]


def main(n: int, repeats: int) -> None:
    """Print a table of medians and ratios."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", SbiWarning)
    hand, normal = GaltonBoard(), LinearGaussian()
    board = PyroSimulator(galton, hand.parameters, categories=NAILS + 1)
    program = PyroSimulator(gaussian, normal.parameters, prior=normal.prior)
    single = PyroSimulator(ball, hand.parameters, vectorized=False, rows_per_seed=100)
    rows = {simulator: made(simulator, n) for simulator in (hand, board, normal, program)}
    few = max(100, n // 500)
    low, high = ([-0.8], [-0.6]), ([0.1], [0.4])

    def cases(
        name: str, simulator: Simulator, pair: tuple[list[float], list[float]]
    ) -> dict[str, Callable[[], object]]:
        return {
            f"{name}: rows": lambda: made(simulator, n),
            f"{name}: score": lambda: joint_score(simulator, rows[simulator]),
            f"{name}: log ratio": lambda: joint_log_ratio(simulator, rows[simulator], *pair),
        }

    candidates = cases("board by hand", hand, low) | cases("board in Pyro", board, low)
    candidates |= cases("Gaussian by hand", normal, high) | cases("Gaussian in Pyro", program, high)
    candidates["board in Pyro, ball by ball: rows with gold"] = lambda: made(single, few)
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats + 1):
        for name, run in candidates.items():
            started = time.process_time()
            run()
            seconds[name].append((time.process_time() - started) / (few if "ball by ball" in name else n))
    print(f"{n} rows ({few} ball by ball), {repeats} rounds, one thread, CPU time")
    print(f"{'':46s}{'µs a row':>10s}{'min':>8s}{'max':>8s}{'times by hand':>15s}")
    for name, found in seconds.items():
        found = found[1:]  # the first round warms up
        reference = "board by hand: rows" if "ball by ball" in name else name.replace("in Pyro", "by hand")
        ratio = statistics.median(a / b for a, b in zip(found, seconds[reference][1:], strict=True))
        middle, least, most = (1e6 * value for value in (statistics.median(found), min(found), max(found)))
        print(f"{name:46s}{middle:10.2f}{least:8.2f}{most:8.2f}" + (f"{ratio:15.1f}" if reference != name else ""))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    main(options.rows, options.repeats)
