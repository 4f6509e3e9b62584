"""Programs as simulators: the files they speak through, what they may answer, and how they fail (faults F45 to F49)."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path

import pytest
import torch

from sbi_core import InputError, Parameter, SbiWarning, SimulatorError, Store, StoreError, check_gold, simulate
from sbi_core.cli import main
from sbi_core.simulations import FAILED, OK, TIMED_OUT
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


@pytest.mark.parametrize("form", ["csv", "json"])
def test_a_program_is_a_simulator(tmp_path, form):
    toy = world(tmp_path, format=form)
    rows = run(toy, 250)
    noise = ((rows.x - rows.theta) / 0.3).flatten()
    assert rows.x.shape == (250, 2) and len(noise.unique()) == 500, "calls and their rows have seeds of their own"
    assert abs(noise.mean()) < 4 / 500**0.5 and abs(noise.square().mean() - 1) < 4 * (2 / 500) ** 0.5
    again = run(world(tmp_path, format=form), 250, workers=2, chunk_rows=100)
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


def answering(text):
    return CommandSimulator(["sh", "-c", text], BOX)


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
    ("text", "words"),
    [
        ("echo the mesh is tangled >&2; exit 3", ["sh ended with code 3", "the mesh is tangled"]),
        ("kill -SEGV $$", ["sh ended with SIGSEGV", "said nothing"]),
        ("true", ["wrote no x.csv"]),
    ],
)
def test_a_program_that_always_fails_is_told_with_its_words(text, words):
    with pytest.raises(SimulatorError, match="each of 3 trial calls") as caught:
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


WORST = 1.5


def check(made, status, words):
    """The rows with a[0] > WORST failed, all others did not."""
    made = made[:]
    bad = made.theta[:, 0] > WORST
    assert 0 < bad.sum() < 12 and made.x[bad].isnan().all() and torch.equal(made.status == status, bad)
    assert torch.equal(made.status == OK, ~bad)
    assert sorted(made.failures) == made.row[bad].tolist()
    assert all(word in text for word in words for text in made.failures.values())


FAULT = "row[0] > 1.5 and ({})"


@pytest.mark.parametrize("rows_per_seed", [1, 15])
def test_rows_that_fail_are_found_and_keep_the_programs_words(tmp_path, rows_per_seed):
    toy = world(tmp_path, FAULT.format("sys.exit('no convergence')"), rows_per_seed=rows_per_seed, retries=0)
    with pytest.warns(SbiWarning, match="no convergence"):
        check(run(toy, max_failures=20, store=tmp_path / "run.zarr"), FAILED, ["code 1", "no convergence"])
    with pytest.raises(SimulatorError, match="max_failures"):
        run(toy)


def test_a_program_that_is_killed_costs_its_row(tmp_path):
    toy = world(tmp_path, FAULT.format("os.kill(os.getpid(), signal.SIGKILL)"), rows_per_seed=10)
    with pytest.warns(SbiWarning):
        check(run(toy, max_failures=20), FAILED, ["ended with SIGKILL"])


def test_a_program_that_hangs_is_ended_with_its_children(tmp_path):
    fault = FAULT.format("[print(1, file=open('begun', 'w')), os.system('sleep 1000')]")
    toy = world(tmp_path, fault, rows_per_seed=1, time_limit=0.5, retries=0, folder=tmp_path / "calls")
    began = time.monotonic()
    with pytest.warns(SbiWarning, match=r"timed out: .*after 0\.5 s"):
        check(run(toy, max_failures=20), TIMED_OUT, ["after 0.5 s", str(tmp_path / "calls" / "call-")])
    assert time.monotonic() - began < 60
    left = list((tmp_path / "calls").iterdir())
    assert left and all((one / "begun").exists() for one in left), "folders of calls that failed are kept"
    alive = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "sleep 1000" not in alive


def test_a_time_limit_of_the_campaign_ends_the_program_too(tmp_path):
    toy = world(tmp_path, FAULT.format("os.system('sleep 1001')"), rows_per_seed=1)
    with pytest.warns(SbiWarning, match="timed out: no answer within 1 s"):
        check(run(toy, max_failures=20, time_limit=1.0), TIMED_OUT, ["1 s"])
    assert "sleep 1001" not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout


def test_a_program_that_fails_by_chance_is_called_again(tmp_path):
    """The second call with the same seed succeeds, and nothing tells it from one that never failed."""
    flaky = f"os.path.exists(f'{tmp_path}/{{seed}}') or [open(f'{tmp_path}/{{seed}}', 'w'), sys.exit('licence')]"
    calm, toy = world(tmp_path), CommandSimulator(program(tmp_path, flaky, name="flaky.py"), BOX)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(run(toy).x, run(calm).x)


KILLED = """
import sys
from sbi_core import Parameter, simulate
from sbi_core.simulators import CommandSimulator
box = [Parameter("a", -2, 2), Parameter("b", -2, 2)]
toy = CommandSimulator(sys.argv[2:], box, rows_per_seed=1)
simulate(toy, 200, store=sys.argv[1], seed=1, chunk_rows=5, progress=False)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_campaign_of_programs_that_is_ended_goes_on(tmp_path, number):
    store, command = tmp_path / "run.zarr", program(tmp_path)
    with subprocess.Popen([sys.executable, "-c", KILLED, store, *command], start_new_session=True) as job:
        while len(list(store.glob("commits/0*.json"))) < 2 and job.poll() is None:
            time.sleep(0.01)
        os.killpg(job.pid, number)
        assert job.wait(30) == (143 if number == signal.SIGTERM else -number)
    kept = Store(store)[:]
    toy = CommandSimulator(command, BOX, rows_per_seed=1)
    n = len(kept) + 2
    whole = run(toy, n)
    assert 10 <= len(kept) < 200 and torch.equal(kept.x, whole.x[kept.row])
    assert torch.equal(run(toy, n, store=store)[:].x, whole.x)


def test_a_program_runs_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
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
    ask = ["simulator._target_=CommandSimulator", f"simulator.command={json.dumps(program(tmp_path, 'sys.exit(1)'))}"]
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


def test_what_a_program_that_failed_began_is_ended(tmp_path):
    number = 1000 + os.getpid() / 1e7
    with pytest.raises(SimulatorError, match="code 3"):
        run(CommandSimulator(["sh", "-c", f"sleep {number} & exit 3"], BOX, rows_per_seed=1, retries=0))
    alive = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert f"sleep {number}" not in alive


def test_the_environment_belongs_to_the_settings():
    one, other = (CommandSimulator("true", BOX, environment={"M": value}) for value in "12")
    assert one.settings != other.settings and "'1'" not in str(one.settings["environment"])
