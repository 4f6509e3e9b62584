"""A loop that can be stopped at a given place: `python killed_loop.py <folder> <workers> <place> <round> <pause>`."""

import sys
import time
from pathlib import Path

import torch
from design_toys import Slope

from sbi_core import simulate
from sbi_core.design import posterior_gain, run_loop
from sbi_core.seeding import derived_seed

ROUNDS = 4
world = Slope()


class Place:
    """Where to wait: it marks that it is there, for whoever kills the process."""

    def __init__(self, folder, place="", number=-1, pause=0.0):
        self.folder, self.place, self.number, self.pause = Path(folder), place, number, pause
        self.chosen = 0

    def wait(self, place, number):
        time.sleep(self.pause)
        if (place, number) == (self.place, self.number):
            (self.folder / f"{place}.here").touch()
            time.sleep(60)


def carry_on(folder, place=None, workers=1):
    """The loop; its experiments give another answer each time they are run, and are written down."""
    place = place or Place(folder)

    def nature(design, number):
        calls = place.folder / "calls.txt"
        before = calls.read_text().split() if calls.exists() else []
        calls.write_text(" ".join([*before, str(number)]))
        place.wait("experiment", number)
        seed = derived_seed(7, number)
        return simulate(world, 1, proposal=torch.tensor([0.8]), design=design, seed=seed, progress=False).x[0]

    def utility(*given, **options):
        if workers == 1:
            done = len(list(place.folder.glob("*.outcome.npz")))
            place.wait("choice", done)
        return posterior_gain(*given, **options)

    options = {"rounds": ROUNDS, "seed": 5, "workers": workers, "n": 64, "inner": 64}
    return run_loop(world, nature, candidates=[0.5, 1.0, 1.5], utility=utility, folder=folder, **options)


if __name__ == "__main__":
    folder, workers, place, number, pause = sys.argv[1:]
    Path(folder).mkdir(exist_ok=True)
    carry_on(folder, Place(folder, place, int(number), float(pause)), int(workers))
