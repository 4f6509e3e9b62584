"""What is written down, what is taken for the same loop, and what a kill leaves."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from design_toys import Slope, outcome_of
from killed_loop import ROUNDS, carry_on

from sbi_core import InputError, SbiWarning
from sbi_core.design import Choice, Gain, Hidden, expected_width, run_loop
from sbi_core.design.ledger import Ledger, fingerprint
from sbi_core.estimators import RatioEstimator
from sbi_core.simulators import LinearGaussian

WORLD = Slope()
NATURE = Hidden(WORLD, [0.7])
SMALL = {"n": 64, "inner": 64, "candidates": [0.5, 1.0]}


def loop(folder, simulator=WORLD, nature=NATURE, **options):
    return run_loop(simulator, nature, folder=folder, **{"rounds": 2, "seed": 1, **SMALL, **options})


def standard(path):
    """A JSON file, read by a reader that knows no infinity."""

    def refuse(word):
        raise AssertionError(f"{path.name} holds {word}")

    return json.loads(path.read_text(), parse_constant=refuse)


GAINS = {
    "all": Gain(0.25, 0.01, "lower", "mine", 3.0, 5, 7, 0.5, 0.75, ("one", "two")),
    "plain": Gain(0.1 + 0.2, 1e-17, "none", "mine"),
    "infinite": Gain(0.25, 0.01, "none", "mine", math.inf, excess=math.nan),
    "none": None,
}


@pytest.mark.parametrize("name", GAINS)
def test_a_round_is_read_as_it_was_written(name, tmp_path):
    gain, design = GAINS[name], torch.tensor([0.1, 1 / 3, -0.0]).double()
    ledger = Ledger(tmp_path, 3, {"end": math.inf}, {"cost": [math.nan]})
    assert ledger.design(0) is None and ledger.outcome(0) is None
    ledger.choose(0, design, gain)
    files = [standard(path) for path in tmp_path.glob("*.json")]
    assert len(files) == 2
    again = Ledger(tmp_path, None, {"end": math.inf}, {"cost": [math.nan]})
    found, what = again.design(0)
    assert again.seed == 3 and again.changes() == () and found.numpy().tobytes() == design.numpy().tobytes()
    assert what == (Gain(0.25, 0.01, "none", "mine") if name == "infinite" else gain)
    x, count = torch.randn(3, 2).double(), torch.tensor(2)
    again.tell(0, x, count)
    again.tell(1, x.float(), None)
    assert all(torch.equal(*pair) for pair in zip(ledger.outcome(0), (x, count), strict=True))
    assert ledger.outcome(1)[0].dtype == torch.float32 and ledger.outcome(1)[1] is None


def test_what_was_looked_at_is_kept(tmp_path):
    options = {"candidates": [0.2, 0.5, 1.0], "cost": lambda design: 1.0 + float(design)}
    before, after = loop(tmp_path, **options), loop(tmp_path, **options)
    for one, again in zip(before.experiments, after.experiments, strict=True):
        assert again.choice is not one.choice and str(again.choice) == str(one.choice)
        for name in ("candidates", "values", "errors", "costs"):
            assert torch.equal(getattr(again.choice, name), getattr(one.choice, name))
    assert not torch.equal(before.experiments[0].choice.values, before.experiments[1].choice.values)
    assert loop(tmp_path / "random", policy="random").experiments[0].choice is None
    ledger, gains = Ledger(tmp_path / "odd", 1, {}, {}), (GAINS["all"], None)
    rows = torch.tensor([[1.0], [2.0]]).double()
    odd = Choice(
        torch.ones(1).double(), gains[0], WORLD.designs, rows, gains, rows[:, 0], {1: "it broke"}, 7, ("look",)
    )
    ledger.choose(0, odd.design, odd.gain, odd)
    found = ledger.choice(0, WORLD.designs)
    assert (found.gains, found.excluded, found.seed, found.flags) == (gains, {1: "it broke"}, 7, ("look",))


def test_without_a_folder_nothing_is_kept():
    ledger = Ledger(None, None, {}, {})
    ledger.choose(0, torch.zeros(1), None)
    ledger.begin(0)
    ledger.put_off(0)
    ledger.tell(0, torch.zeros(1), None)
    assert ledger.design(0) is None and ledger.outcome(0) is None and not ledger.begun(0) and ledger.changes() == ()
    assert ledger.seed != Ledger(None, None, {}, {}).seed


def test_fingerprints_tell_settings_apart():
    def one(design):
        return 1.0

    def two(design):
        return 2.0

    nets = [RatioEstimator(WORLD.parameters, (1,), designs=WORLD.designs) for _ in range(2)]
    with torch.no_grad():
        next(nets[1].parameters()).add_(0.1)
    different = [
        [one, two],
        [partial(expected_width, of="a"), partial(expected_width, of="b"), expected_width],
        nets,
        [torch.zeros(2), torch.zeros(3), torch.ones(2)],
        [math.inf, -math.inf, 1.0, "1", None],
        [LinearGaussian(1), LinearGaussian(2), LinearGaussian(1, noise_std=3.0)],
        [Hidden(WORLD, [0.5]), Hidden(WORLD, [0.6]), Hidden(WORLD, [0.5], seed=1)],
    ]
    for values in different:
        prints = [json.dumps(fingerprint(value), allow_nan=False) for value in values]
        assert len(set(prints)) == len(values), prints
        assert prints == [json.dumps(fingerprint(value)) for value in values]


def test_paths_are_told_apart():
    assert fingerprint(Path("one")) != fingerprint(Path("two"))


OTHERS = {
    "seed": {"seed": 2},
    "simulator": {"simulator": type("Other", (Slope,), {})()},
    "version": {"simulator": type("Slope", (Slope,), {"version": "2"})()},
    "prior": {"prior": LinearGaussian(1).prior.expand(torch.Size())},
    "policy": {"policy": "grid"},
}


@pytest.mark.filterwarnings("ignore::sbi_core.errors.SbiWarning")
def test_another_loops_folder_is_refused(tmp_path):
    loop(tmp_path)
    wide = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(1).double(), 2.0), 1)
    for name, options in {**OTHERS, "prior": {"prior": wide}}.items():
        with pytest.raises(InputError, match="belongs to another loop") as caught:
            loop(tmp_path, **options)
        assert ("simulator" if name == "version" else name) in str(caught.value)
    loop(tmp_path / "grid", policy="grid")


CHANGES = {
    "start": {"start": [0.5]},
    "candidates": {"candidates": [0.5, 1.0, 1.5]},
    "options": {"n": 65},
    "utility": {"utility": lambda *_, seed, n, inner: 1.0},
    "cost": {"cost": lambda design: 2.0},
    "nature": {"nature": Hidden(WORLD, [0.8])},
    "inference": {"inference": {"method": "grid"}},
}


def test_other_deciders_are_said_and_other_ends_are_not(tmp_path):
    before = loop(tmp_path)
    for name, options in CHANGES.items():
        with pytest.warns(SbiWarning, match=rf"rounds \[0, 1\] were decided with another {name} than now"):
            after = loop(tmp_path, **options)
        assert len(after.flags) == 1 and outcome_of(after) == outcome_of(before), "what was done is done"
    more = loop(tmp_path, rounds=3, seed=None, spend=30.0, noise=0.01, width={"theta": 1e-3})
    assert more.flags == () and outcome_of(more)[0][:2] == outcome_of(before)[0]
    assert outcome_of(more) == outcome_of(loop(None, rounds=3)), "a loop in parts is the loop in one"
    with pytest.warns(SbiWarning, match=r"rounds \[0, 1, 2\] were decided with another cost"):
        loop(tmp_path, rounds=4, cost=lambda design: 2.0)
    with pytest.warns(SbiWarning, match=r"rounds \[3\] were decided with another cost"):
        loop(tmp_path, rounds=4)


# F84: kill -9


def killed(folder, place, number, pause=0.0, workers=1):
    """Start the loop, and kill it where it waits, or after a pause once it has begun."""
    job = [sys.executable, str(Path(__file__).with_name("killed_loop.py"))]
    arguments = [str(folder), str(workers), place, str(number), str(pause)]
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    with subprocess.Popen(job + arguments, start_new_session=True, env={**os.environ, "PYTHONPATH": path}) as process:
        until = time.monotonic() + 300
        while not (folder / f"{place}.here").exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        assert process.poll() is None, "it ended by itself"
        os.killpg(process.pid, signal.SIGKILL)
    (folder / f"{place}.here").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return carry_on(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(
    ("place", "number"),
    [
        ("choice", 2),
        ("experiment", 1),
        *(pytest.param("choice", k, marks=pytest.mark.slow) for k in (0, 1, 3)),
        *(pytest.param("experiment", k, marks=pytest.mark.slow) for k in (0, 2, 3)),
    ],
)
@pytest.mark.filterwarnings("default::sbi_core.errors.SbiWarning")
def test_f84_killed_loop_goes_on(place, number, tmp_path, whole, recwarn):
    killed(tmp_path, place, number)
    kept = sorted(path.name for path in tmp_path.glob("*.outcome.npz"))
    assert kept == [f"{k:03d}.outcome.npz" for k in range(number)], "every outcome that was told is there"
    found = carry_on(tmp_path)
    assert outcome_of(found) == outcome_of(whole), "the same designs, gains and posteriors, bit for bit"
    calls = list(map(int, (tmp_path / "calls.txt").read_text().split()))
    again = [number] if place == "experiment" else []
    assert calls == sorted([*range(ROUNDS), *again]), "no experiment is repeated but the one that was cut short"
    said = [f"round {k} had been begun when the loop was interrupted, and is run again" for k in again]
    assert len(found.flags) == len(said) and all(text in found.flags[0] for text in said), "never silently"
    assert [text for text in said if not any(text in str(w.message) for w in recwarn)] == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sbi_core.errors.SbiWarning")
def test_f84_killed_anywhere_many_times(tmp_path, whole):
    for kill in range(12):
        folder = tmp_path / str(kill)
        folder.mkdir()
        with subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("killed_loop.py")), str(folder), "1", "", "-1", "0.02"],
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])},
        ) as process:
            while not (folder / "loop.json").exists() and process.poll() is None:
                time.sleep(0.001)
            time.sleep(0.035 * kill)
            os.killpg(process.pid, signal.SIGKILL)
        kept = len(list(folder.glob("*.outcome.npz")))
        found = carry_on(folder)
        calls = list(map(int, (folder / "calls.txt").read_text().split()))
        assert outcome_of(found) == outcome_of(whole)
        assert set(calls) == set(range(ROUNDS)) and len(calls) <= ROUNDS + 1 and calls[:kept] == list(range(kept))
        assert len(found.flags) == len(calls) - ROUNDS


def test_f84_saboteur_a_ledger_without_an_outcome_repeats_the_experiment(tmp_path, whole):
    carry_on(tmp_path)
    (tmp_path / "001.outcome.npz").unlink()
    (tmp_path / "002.design.json").unlink()
    with pytest.warns(SbiWarning, match="round 1 had been begun"):
        found = carry_on(tmp_path)
    assert (tmp_path / "calls.txt").read_text().split() == ["0", "1", "2", "3", "1"]
    assert outcome_of(found) == outcome_of(whole)


@pytest.mark.slow
def test_f84_two_processes_decide_the_same_bits(tmp_path, whole):
    (tmp_path / "two").mkdir()
    assert outcome_of(carry_on(tmp_path / "two", workers=2)) == outcome_of(whole)
