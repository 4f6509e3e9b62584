"""Programs as simulators: the files they speak through, and what they may answer."""

import json
import sys
from pathlib import Path

import pytest
import torch
from command_programs import BOX, answering, program, run, world

from sbi_core import InputError, Parameter, SimulatorError, StoreError, check_gold
from sbi_core.cli import main
from sbi_core.simulators import CommandSimulator


@pytest.mark.parametrize("form", ["csv", "json"])
def test_a_program_is_a_simulator(tmp_path, form):
    toy = world(tmp_path, format=form)
    rows = run(toy, 250)
    noise = ((rows.x - rows.theta) / 0.3).flatten()
    assert rows.x.shape == (250, 2) and len(noise.unique()) == 500, "calls and their rows have seeds of their own"
    assert abs(noise.mean()) < 4 / 500**0.5 and abs(noise.square().mean() - 1) < 4 * (2 / 500) ** 0.5
    again = run(world(tmp_path, format=form), 250, chunk_rows=100)
    assert torch.equal(rows.x, again.x) and not torch.equal(rows.x, run(toy, 250, seed=2).x)
    assert not list(tmp_path.glob("call-*"))


def test_arrays_go_through_npy(tmp_path):
    text = """
        import sys
        import numpy as np
        theta = np.load("theta.npy")
        assert theta.shape[1] == 3
        np.save("x.npy", theta[:, None, :] * np.ones((1, 4, 1)))
    """
    toy = CommandSimulator(
        [sys.executable, program(tmp_path, text=text)[3]], BOX, designs=[Parameter("energy", 1, 9)], format="npy"
    )
    rows = run(toy, 20, design=torch.tensor([5.0]))
    given = torch.cat([rows.theta, rows.design], 1)
    assert rows.x.shape == (20, 4, 3) and torch.equal(rows.x[:, 2], given), "every bit of theta arrives"
    with pytest.raises(InputError, match=r"\['energy'\].*design="):
        run(toy, 20)


def test_every_bit_of_theta_arrives_in_text(tmp_path):
    toy = CommandSimulator(["cp", "theta.csv", "x.csv"], BOX)
    rows = run(toy, 20)
    assert torch.equal(rows.x, rows.theta)


def test_values_on_the_command_line_and_standard_output():
    toy = CommandSimulator(["echo", "{a},{b},{seed}"], BOX, output="-", rows_per_seed=1)
    rows = run(toy, 4)
    assert torch.equal(rows.x[:, :2], rows.theta) and len(rows.x[:, 2].unique()) == 4
    small = CommandSimulator("echo '{seed}'", BOX, output="-", rows_per_seed=1, seed_bits=16)
    assert run(small, 20).x.max() < 2**16
    with pytest.raises(InputError, match=r"\{a\}.*rows_per_seed=1"):
        CommandSimulator(["echo", "{a}"], BOX)


GOLD = """
import json, random, sys
asked = json.load(open(sys.argv[1]))
random.seed(asked["seed"])
assert asked["parameters"] == ["mu"]
x, score, ratio = [], [], []
for (mu,), alt in zip(asked["theta"], asked["theta_alt"]):
    z = mu + random.gauss(0, 1)
    x.append([z + random.gauss(0, 1)])
    score.append([z - mu])
    ratio.append([((other[0] - z) ** 2 - (mu - z) ** 2) / 2 for other in alt])
json.dump({"x": x, "joint_score": score, "joint_log_ratio": ratio}, open(sys.argv[2], "w"))
"""


def test_a_program_may_return_its_gold(tmp_path):
    mu = [Parameter("mu", -1, 1)]
    options = {"format": "json", "contrasts": 2, "rows_per_seed": 1000}
    toy = CommandSimulator(program(tmp_path, text=GOLD), mu, **options)
    rows = run(toy, 3000)
    check_gold(toy, rows).raise_if_failed()
    assert rows.joint_log_ratio.shape == (3000, 2)
    wrong = CommandSimulator(program(tmp_path, text=GOLD.replace("[z - mu]", "[mu - z]"), name="w.py"), mu, **options)
    assert not check_gold(wrong, run(wrong, 3000)).passed


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("head -5 theta.csv > x.csv", ["x.csv has shape (4, 2)", "(10, ...)"]),
        ("echo one, two > x.csv", ["x.csv has shape (0, 2)"]),
        ("echo 1, two > x.csv", ["cannot be read as csv", "'1, two"]),
        ("true > x.csv", ["shape (0, 0)"]),
    ],
)
def test_answers_that_make_no_sense_end_the_campaign(text, words):
    with pytest.raises(SimulatorError) as caught:
        run(answering(text))
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"command": "no_such_program {input}"}, ["no program 'no_such_program'"]),
        ({"command": ""}, ["command is empty"]),
        ({"command": "true", "format": "cvs"}, ["format = 'cvs'", "'csv'"]),
        ({"command": "true", "retries": -1}, ["retries = -1"]),
        ({"command": "true", "rows_per_seed": 0}, ["rows_per_seed = 0"]),
        ({"command": "true", "seed_bits": 64}, ["seed_bits = 64"]),
        ({"command": "true", "time_limit": 0}, ["time_limit = 0"]),
        ({"command": "true", "contrasts": 2}, ["contrasts = 2", "json"]),
    ],
)
def test_options_that_make_no_sense_are_refused(options, words):
    with pytest.raises(InputError) as caught:
        CommandSimulator(parameters=BOX, **options)
    assert all(word in str(caught.value) for word in words)


def test_an_edited_program_does_not_continue_a_campaign(tmp_path):
    store = tmp_path / "run.zarr"
    run(world(tmp_path), 20, store=store)
    run(world(tmp_path, retries=3), 30, store=store)
    with pytest.raises(StoreError, match="settings"):
        run(world(tmp_path, "row[0] += 1e-9"), 40, store=store)


def test_relative_names_are_seen_from_where_the_simulator_was_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = program(".")
    assert command[3] == "sim.py"
    toy = CommandSimulator(command, BOX)
    monkeypatch.chdir("/")
    assert run(toy, 5).valid.all() and "sim.py" in toy.files


def test_a_program_runs_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sbi_core.report.write_report", lambda path, results: path.touch())
    monkeypatch.setattr("sbi_core.stages.with_checks", lambda results, *given, **options: results)
    words = json.dumps(program(tmp_path))
    ask = ["simulator._target_=CommandSimulator", f"simulator.command={words}", "loss=nre", "seed=1"]
    ask += ["simulator.parameters={a: [-2, 2], b: [-2, 2]}", "n_simulations=300", "training.max_epochs=2"]
    assert main([*ask, "x_obs=[0.5, -0.5]", "checks.pairs=0", "run_dir=r", "campaign.max_failures=0"]) == 0
    assert capsys.readouterr().out.startswith("a = ")
    Path("r/simulations.zarr/commits/00000002.json").unlink()
    Path("r/estimator/training.json").unlink(missing_ok=True)
    assert main(["run_dir=r", "x_obs=[0, 0]"]) == 0, "what is trained needs no program"


def test_a_run_folder_may_not_run_a_program(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ask = ["simulator._target_=CommandSimulator", "simulator.command=[sh, -c, exit 1]"]
    ask += ["simulator.parameters={a: [-2, 2], b: [-2, 2]}", "n_simulations=300", "loss=nre", "run_dir=r"]
    assert main([*ask, "x_obs=[0, 0]"]) == 1
    assert "each of 3 trial calls" in capsys.readouterr().err
    assert main(["run_dir=r"]) == 2
    assert "_target_ = CommandSimulator" in capsys.readouterr().err


def test_files_of_earlier_tries_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("theta.csv", "x.csv"):
        Path(name).write_text("a,b\n1,2\n")
    rows = run(CommandSimulator("cp theta.csv x.csv", BOX), 5)
    assert torch.equal(rows.x, rows.theta) and Path("x.csv").read_text() == "a,b\n1,2\n"


def test_the_environment_belongs_to_the_settings():
    one, other = (CommandSimulator("true", BOX, environment={"M": value}) for value in "12")
    assert one.settings != other.settings and "'1'" not in str(one.settings["environment"])
