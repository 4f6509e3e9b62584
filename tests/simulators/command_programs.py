"""Programs that tests run as simulators: the reference problem with a fault for some rows, and lines of a shell."""

import sys
import textwrap
from pathlib import Path

from sbi_core import Parameter, simulate
from sbi_core.simulators import CommandSimulator

BOX = [Parameter("a", -2, 2), Parameter("b", -2, 2)]
PYTHON = [sys.executable, "-S", "-E"]

PROGRAM = """
import csv, json, math, os, random, signal, sys, time
source, answer, seed = sys.argv[1:4]
random.seed(int(seed))
if source.endswith("json"):
    asked = json.load(open(source))
    theta = [t + d for t, d in zip(asked["theta"], asked.get("design") or [[]] * len(asked["theta"]))]
else:
    theta = [[float(cell) for cell in row] for row in list(csv.reader(open(source)))[1:]]
for row in theta:
    {fault}
x = [[value + 0.3 * random.gauss(0, 1) for value in row] for row in theta]
if answer.endswith("json"):
    json.dump(x, open(answer, "w"))
else:
    csv.writer(open(answer, "w")).writerows(x)
"""


def program(place, fault="pass", name="sim.py", text=PROGRAM):
    path = Path(place, name)
    path.write_text(textwrap.dedent(text).replace("{fault}", fault))
    return [*PYTHON, str(path), "{input}", "{output}", "{seed}"]


def world(place, fault="pass", **options):
    return CommandSimulator(program(place, fault), BOX, **options)


def run(simulator, n=30, seed=1, **options):
    return simulate(simulator, n, seed=seed, progress=False, **options)


def answering(text):
    return CommandSimulator(["sh", "-c", text], BOX)
