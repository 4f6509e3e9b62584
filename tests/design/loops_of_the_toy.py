"""Closed loops on the asymmetry toy, at hidden thetas drawn from its prior: `python loops_of_the_toy.py 400`."""

import sys
import time

import torch

from sbi_core import Events
from sbi_core.design import Hidden, run_loop
from sbi_core.design.experiment import ratio
from sbi_core.simulators import AsymmetryToy

TOY = AsymmetryToy()
RUNS = Events(TOY, 20)
ENDS = [40.0, 42.5, 45.0, 47.5, 50.0]


def loops(many, *, rounds=10, n=96, inner=128, first=0):
    """For each hidden theta its loop by gain, and one with random designs."""
    found = []
    for k in range(first, first + many):
        theta = TOY.prior.from_unit(torch.tensor([[(k + 0.5) * 0.6180339887498949 % 1]]).double())[0]
        hidden = Hidden(RUNS, theta, seed=1000 + k)
        options = {"rounds": rounds, "seed": k, "n": n, "inner": inner}
        gain = run_loop(RUNS, hidden, candidates=ENDS, confirm=True, **options)
        found.append((theta, gain, run_loop(RUNS, hidden, policy="random", **options)))
    return found


def summary(found):
    """Predicted over realised gain, coverage of 68 % intervals, and posterior widths, of what `loops` gave."""
    pairs = [(one.predicted.value, one.realised) for _, gain, _ in found for one in gain.experiments]
    each = [
        (sum(one.predicted.value for one in gain.experiments), sum(one.realised for one in gain.experiments))
        for _, gain, _ in found
    ]
    covered, widths = [], []
    for theta, gain, random in found:
        low, high = gain.posterior.credible_interval(0.683)
        covered.append(float((low <= theta) & (theta <= high)))
        widths.append([float(one.posterior.stddev) for one in (gain, random)])
    sd = torch.tensor(widths)
    by_round = torch.tensor(pairs).reshape(len(found), -1, 2).mean(0)
    return {
        "ratio": ratio(each)[0],
        "ratio error": ratio(each)[1],
        "coverage": sum(covered) / len(covered),
        "sd": float(sd[:, 0].mean()),
        "sd of random designs": float(sd[:, 1].mean()),
        "median of sd ratios": float((sd[:, 0] / sd[:, 1]).median()),
        "predicted and realised by round": by_round.tolist(),
    }


if __name__ == "__main__":
    started, found = time.monotonic(), []
    for first in range(0, int(sys.argv[1]), 20):
        found += loops(20, first=first)
        print(f"\n{len(found)} thetas, {time.monotonic() - started:.0f} seconds", flush=True)
        for name, value in summary(found).items():
            print(f"{name}: {value}", flush=True)
