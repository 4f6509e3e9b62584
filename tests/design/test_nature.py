"""Who answers an experiment: the same answer to the same question, folders with files, and what is no answer."""

import json

import numpy as np
import pytest
import torch
from design_toys import Slope, outcome_of

from sbi_core import Events, InputError, Parameter, SbiWarning, infer
from sbi_core.design import Folder, Hidden, run_loop
from sbi_core.design.nature import answer, as_nature
from sbi_core.simulators import AsymmetryToy, DeathProcess

WORLD = Slope()
SMALL = {"rounds": 2, "seed": 1, "n": 64, "inner": 64, "candidates": [0.5, 1.0]}
TOY = AsymmetryToy()
VARYING = Events(TOY, n=lambda design: 2 + design[:, 0] // 10, n_max=8)  # 6 events at 40 GeV, 7 at 50


def test_hidden_answers_the_same_question_alike():
    nature, at = Hidden(WORLD, [0.7]), torch.tensor([1.0]).double()
    x, count = nature(at, 3)
    assert x.shape == (1,) and count is None and torch.equal(nature(at, 3)[0], x)
    assert not torch.equal(nature(at, 4)[0], x) and not torch.equal(Hidden(WORLD, [0.7], seed=1)(at, 3)[0], x)
    runs, number = Hidden(VARYING, [1.0])(torch.tensor([40.0]).double(), 0)
    assert runs.shape == (8, 1) and int(number) == 6 and (runs[6:] == 0).all()
    with pytest.raises(InputError, match=r"shape \(2,\)"):
        Hidden(WORLD, [0.7, 0.8])(at, 0)


def test_what_cannot_answer():
    assert as_nature("somewhere", WORLD).designs == WORLD.designs
    with pytest.raises(InputError, match=r"nature is int: expected Hidden\(simulator, theta\), a function"):
        run_loop(WORLD, 3)


ANSWERS = {
    "NaN": ([np.nan], "round 5 returned NaN or infinite values"),
    "infinite": ([np.inf], "round 5 returned NaN or infinite values"),
    "text": ("yes", "expected an array of numbers, got str"),
    "two": ([1.0, 2.0], r"x of round 5 has shape \(2,\), expected \(1,\)"),
}


@pytest.mark.parametrize(("found", "words"), ANSWERS.values(), ids=ANSWERS)
def test_what_is_no_answer(found, words):
    with pytest.raises(InputError, match=words):
        answer(found, WORLD, 5)


def test_answers_are_brought_into_shape():
    for found in (1.5, [1.5], [[1.5]], torch.tensor(1.5), (torch.tensor([1.5]), None)):
        x, count = answer(found, WORLD, 0)
        assert x.shape == (1,) and float(x) == 1.5 and count is None
    with pytest.raises(InputError, match=r"has shape \(2, 20\), expected \(20, 2\)"):
        answer(torch.zeros(2, 20), type("Two", (), {"x_shape": (20, 2)}), 0)
    fixed = Events(TOY, 3)
    assert answer((torch.zeros(3, 1), torch.tensor(3)), fixed, 0)[1] is None, "all runs have three"
    for found in ([0.1, 0.2], [[0.1], [0.2]], ([0.1, 0.2, 0, 0, 0, 0, 0, 0], 2)):
        x, count = answer(found, VARYING, 0)
        assert x.shape == (8, 1) and int(count) == 2 and float(x.sum()) == pytest.approx(0.3)
    with pytest.raises(InputError, match="n_events is missing"):
        answer(torch.zeros(8, 1), VARYING, 0)
    with pytest.raises(InputError, match="at most 8 events"):
        answer(torch.zeros(9, 1), VARYING, 0)


WRITERS = {
    "npy": lambda path, x: np.save(path, x),
    "npz": lambda path, x: np.savez(path, x_obs=x),
    "csv": lambda path, x: np.savetxt(path, np.atleast_2d(x), delimiter=",", header="a,b", comments=""),
}


@pytest.mark.parametrize("ending", WRITERS)
def test_ask_and_tell(ending, tmp_path):
    world = DeathProcess()

    def carry_on():
        pairs = [[0.5, 2.0], [1.0, 3.0]]
        return run_loop(world, tmp_path, candidates=pairs, rounds=2, seed=1, n=64, inner=64)

    told = []
    for number in range(2):
        found = carry_on()
        assert len(found.experiments) == number and found.flags == ()
        asked = json.loads((tmp_path / f"{number:03d}.ask.json").read_text())
        at = list(asked["design"].values())
        assert found.stopped == f"waiting for the outcome of round {number} at design {at}"
        assert asked["round"] == number and list(asked["design"]) == ["t_1", "t_2"]
        assert outcome_of(carry_on()) == outcome_of(found), "asking again changes nothing"
        WRITERS[ending](tmp_path / f"{number:03d}.{ending}", np.array([3.0 + number, 7.0]))
        told.append(at)
    done = carry_on()
    assert done.stopped == "all 2 rounds are done" and [one.design.tolist() for one in done.experiments] == told
    expected = infer(world, world.prior, [[3.0, 7.0], [4.0, 7.0]], design=torch.tensor(told).double(), iid=True)
    assert torch.equal(done.posterior.mean, expected.mean)
    hidden = run_loop(world, lambda design, k: [3.0 + k, 7.0], **{**SMALL, "candidates": [[0.5, 2.0], [1.0, 3.0]]})
    assert outcome_of(hidden) == outcome_of(done), "a function that says the same teaches the same"


def test_a_folder_with_wrong_answers(tmp_path):
    def carry_on(**options):
        return run_loop(WORLD, Folder(tmp_path, WORLD.designs), folder=tmp_path / "ledger", **{**SMALL, **options})

    carry_on()
    np.save(tmp_path / "000.npy", np.zeros(2))
    with pytest.raises(InputError, match=r"x of round 0 has shape \(2,\), expected \(1,\)"):
        carry_on()
    np.savetxt(tmp_path / "000.csv", [1.0], header="x", comments="")
    with pytest.raises(InputError, match=r"round 0 has several answers: 000.npy, 000.csv. Keep one"):
        carry_on()
    (tmp_path / "000.npy").unlink()
    (tmp_path / "000.csv").write_text("x\nmuch\n")
    with pytest.raises(InputError, match="expected 1 numbers"):
        carry_on()
    np.savetxt(tmp_path / "000.csv", [1.0], header="x", comments="")
    assert len(carry_on().experiments) == 1
    assert "round 0 of" not in str(carry_on().flags)
    with pytest.raises(InputError, match=r"000.ask.json asks at \{'d': .*it belongs to another loop"):
        run_loop(WORLD, Folder(tmp_path, WORLD.designs), folder=tmp_path / "new", **{**SMALL, "candidates": [0.25]})


def test_runs_of_events_are_told_as_events_alone_or_with_their_number(tmp_path):
    def carry_on():
        return run_loop(VARYING, tmp_path, candidates=[40.0, 50.0], rounds=3, seed=1, n=32, inner=32)

    runs = [[0.1, 0.2, 0.3], [-0.5], []]
    carry_on()
    np.savetxt(tmp_path / "000.csv", runs[0], header="c", comments="")
    carry_on()
    np.savez(tmp_path / "001.npz", x=np.pad([runs[1]], ((0, 0), (0, 7))).T, n_events=1)
    carry_on()
    np.save(tmp_path / "002.npy", np.zeros((0, 1)))
    done = carry_on()
    assert done.stopped == "all 3 rounds are done" and [int(one.n_events) for one in done.experiments] == [3, 1, 0]
    events = [(c, one.design) for run, one in zip(runs, done.experiments, strict=True) for c in run]
    x, design = torch.tensor([[c] for c, _ in events]).double(), torch.stack([d for _, d in events])
    single = infer(TOY, TOY.prior, x, design=design, iid=True)
    assert torch.allclose(done.posterior.mean, single.mean, rtol=1e-6)
    assert done.experiments[2].realised == pytest.approx(0, abs=1e-12), "no event, nothing learned"
    assert abs(float(single.mean) - float(infer(TOY, TOY.prior, x[1:], design=design[1:], iid=True).mean)) > 1e-3


def test_a_function_that_has_no_answer_yet_is_asked_again_in_silence(tmp_path):
    ready = []

    def nature(design, number):
        return [0.3] if ready else None

    for _ in range(2):
        found = run_loop(WORLD, nature, folder=tmp_path, **SMALL)
        assert found.stopped.startswith("waiting for the outcome of round 0") and found.flags == ()
    ready.append(True)
    assert len(run_loop(WORLD, nature, folder=tmp_path, **SMALL).experiments) == 2


def test_a_function_that_breaks_down_is_said_to_be_run_again(tmp_path):
    broken = [True]

    def nature(design, number):
        if broken:
            raise OSError("no beam")
        return [0.3]

    with pytest.raises(OSError, match="no beam"):
        run_loop(WORLD, nature, folder=tmp_path, **SMALL)
    broken.clear()
    with pytest.warns(SbiWarning, match=r"round 0 had been begun .* and is run again at \[1.0\]"):
        found = run_loop(WORLD, nature, folder=tmp_path, **SMALL)
    assert len(found.flags) == 1 and len(found.experiments) == 2


def test_units_are_asked_for(tmp_path):
    Folder(tmp_path, (Parameter("phi", 40, 50, unit="GeV"),))(torch.tensor([47.5]), 2)
    asked = json.loads((tmp_path / "002.ask.json").read_text())
    assert asked == {"round": 2, "design": {"phi": 47.5}, "units": {"phi": "GeV"}}
