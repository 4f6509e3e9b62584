"""Speed of the generalised Galton board, one theta per ball, side by side with plain implementations in one run.

    python benchmarks/galton_speed.py [--balls 100000] [--repeats 7]

Rounds alternate between all candidates; the ratio of medians to the straightforward NumPy vectorisation is reported,
and the time that 20 random numbers a ball take alone, which no implementation can beat. One thread.
"""

import argparse
import math
import random
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from sbi_core import Simulations, joint_log_ratio, joint_score, simulate
from sbi_core.simulators import GaltonBoard

ROWS, NAILS = 20, 31


def python_loop(theta: np.ndarray, rng: random.Random) -> list[int]:
    """Throw one ball at a time."""
    slots = []
    for value in theta.tolist():
        at = (NAILS - 1) // 2
        for row in range(ROWS):
            tilt = math.sin(math.pi * row / (ROWS - 1))
            side = 2 * at / (NAILS - 1) - 1
            left = rng.random() < (1 - tilt) / 2 + tilt / (1 + math.exp(-10 * value * side))
            if row % 2 == 0:
                at += not left
            elif at == NAILS or (at > 0 and left):
                at -= 1
        slots.append(at)
    return slots


def numpy_rows(theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """All balls at once, row by row: slots (M,) from theta (M,)."""
    at = np.full(len(theta), (NAILS - 1) // 2)
    for row in range(ROWS):
        tilt = np.sin(np.pi * row / (ROWS - 1))
        side = 2 * at / (NAILS - 1) - 1
        left = rng.random(len(theta)) < (1 - tilt) / 2 + tilt / (1 + np.exp(-10 * theta * side))
        if row % 2 == 0:
            at = np.where(left, at, at + 1)
        else:
            left = np.where(at == 0, False, np.where(at == NAILS, True, left))
            at = np.where(left, at - 1, at)
    return at


def main(balls: int, repeats: int) -> None:
    """Print a table of medians and ratios."""
    torch.set_num_threads(1)
    board = GaltonBoard()
    theta = torch.empty(balls, 1).double().uniform_(-1, 0, generator=torch.Generator().manual_seed(0))
    info = simulate(board, 1, seed=0, progress=False).info
    few = theta[: max(1, balls // 50)].numpy()[:, 0]
    random_py, random_np, random_torch = random.Random(0), np.random.default_rng(0), torch.Generator().manual_seed(0)

    def with_gold() -> None:
        x, z = board.sample(theta, None, random_torch)
        rows = Simulations(theta=theta, x=x, z=z, info=info)
        joint_score(board, rows)
        joint_log_ratio(board, rows, [-0.8], [-0.6])

    candidates: dict[str, tuple[Callable[[], object], float]] = {
        "NumPy over rows, x alone": (lambda: numpy_rows(theta.numpy()[:, 0], random_np), 1.0),
        "GaltonBoard, x and path": (lambda: board.sample(theta, None, random_torch), 1.0),
        "GaltonBoard with score and log ratio": (with_gold, 1.0),
        "simulate(GaltonBoard), theta, x and path": (lambda: simulate(board, balls, seed=0, progress=False), 1.0),
        "Python loop, x alone": (lambda: python_loop(few, random_py), balls / len(few)),
        "20 random numbers a ball, torch": (lambda: torch.rand((ROWS, balls), generator=random_torch), 1.0),
        "20 random numbers a ball, NumPy": (lambda: random_np.random((ROWS, balls)), 1.0),
    }
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats + 1):
        for name, (run, scale) in candidates.items():
            started = time.perf_counter()
            run()
            seconds[name].append((time.perf_counter() - started) * scale)
    reference = seconds["NumPy over rows, x alone"][1:]
    print(f"{balls} balls, {repeats} rounds, one thread")
    print(f"{'':44s}{'ms (median)':>12s}{'min':>8s}{'max':>8s}{'balls/s':>11s}{'speed against NumPy':>21s}")
    for name, found in seconds.items():
        found = found[1:]  # the first round warms up
        ratio = statistics.median(a / b for a, b in zip(reference, found, strict=True))
        middle = statistics.median(found)
        print(
            f"{name:44s}{middle * 1e3:12.1f}{min(found) * 1e3:8.1f}{max(found) * 1e3:8.1f}{balls / middle:11.3g}"
            f"{ratio:21.2f}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--balls", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    main(options.balls, options.repeats)
