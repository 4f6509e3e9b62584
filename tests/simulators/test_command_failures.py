"""Programs that fail, hang or are killed, and campaigns that end while they run (faults F45 to F49)."""

import os
import signal
import subprocess
import sys
import time
import warnings

import pytest
import torch
from command_programs import BOX, answering, program, run, world

from sbi_core import SbiWarning, SimulatorError, Store
from sbi_core.interrupts import terminable
from sbi_core.simulations import FAILED, OK, TIMED_OUT
from sbi_core.simulators import CommandSimulator

FAULT = "row[0] > 1.5 and ({})"
WORST = 1.5
NAP = f"sleep {1000 + os.getpid() / 1e7}"  # no other test on this machine sleeps as long


def run_at(simulator, *values, **options):
    """One row at each value of the first parameter, of which some are above WORST."""
    return run(simulator, len(values), proposal=torch.tensor([[value, 0.0] for value in values]), **options)


def check(made, status, words):
    """The rows above WORST failed, all others did not."""
    made = made[:]
    bad = made.theta[:, 0] > WORST
    assert bad.any() and made.x[bad].isnan().all() and torch.equal(made.status == status, bad)
    assert torch.equal(made.status == OK, ~bad)
    assert sorted(made.failures) == made.row[bad].tolist()
    assert all(word in text for word in words for text in made.failures.values())


def asleep():
    """Whether a program that a test told to sleep still does."""
    return NAP in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("rows_per_seed", [1, 4])
def test_rows_that_fail_are_found_and_keep_the_programs_words(tmp_path, rows_per_seed):
    toy = world(tmp_path, FAULT.format("sys.exit('no convergence')"), rows_per_seed=rows_per_seed, retries=0)
    thetas = (0, 1, -1, 1.4, 0, 1.7, -2, 1.6, 0)
    with pytest.warns(SbiWarning, match="no convergence"):
        made = run_at(toy, *thetas, max_failures=2, store=tmp_path / "run.zarr")
    check(made, FAILED, ["code 1", "no convergence"])
    with pytest.raises(SimulatorError, match="max_failures"):
        run_at(toy, *thetas, max_failures=1)


def test_a_program_that_is_killed_costs_its_row(tmp_path):
    toy = world(tmp_path, FAULT.format("os.kill(os.getpid(), signal.SIGKILL)"), rows_per_seed=3)
    with pytest.warns(SbiWarning):
        check(run_at(toy, 0, 1, -1, 0, 1.7, 0, max_failures=1), FAILED, ["ended with SIGKILL"])


def test_a_program_that_hangs_is_ended_with_its_children(tmp_path):
    fault = FAULT.format(f"[print(1, file=open('begun', 'w')), os.system('{NAP}')]")
    toy = world(tmp_path, fault, rows_per_seed=1, time_limit=1, retries=1, folder=tmp_path / "calls")
    began = time.monotonic()
    with pytest.warns(SbiWarning, match=r"timed out: .*after 1 s"):
        check(run_at(toy, 0, 1.7, 1, max_failures=1), TIMED_OUT, ["after 1 s", str(tmp_path / "calls" / "call-")])
    assert time.monotonic() - began < 60
    left = list((tmp_path / "calls").iterdir())
    assert len(left) == 2 and all((one / "begun").exists() for one in left), "folders of calls that failed are kept"
    assert not asleep()


def test_a_time_limit_of_the_campaign_ends_the_program_too(tmp_path, monkeypatch):
    monkeypatch.setattr("sbi_core.campaign.try_out", lambda plan, seconds: plan.trial())  # one process is enough
    toy = world(tmp_path, FAULT.format(f"os.system('{NAP}')"), rows_per_seed=1)
    with pytest.warns(SbiWarning, match="timed out: no answer within 1 s"):
        made = run_at(toy, 0, 1.7, 1, max_failures=1, time_limit=1.0)
    check(made, TIMED_OUT, ["1 s"])
    calm = run_at(world(tmp_path, "pass", rows_per_seed=1), 0, 1.7, 1)
    assert torch.equal(made.x[made.valid], calm.x[made.valid]), "a worker process draws the same rows"
    assert not asleep()


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
toy = CommandSimulator(sys.argv[2:], box, output="-", rows_per_seed=1)
simulate(toy, 9999, store=sys.argv[1], seed=1, chunk_rows=5, progress=False)
"""


def test_a_campaign_of_programs_that_is_killed_goes_on(tmp_path):
    store, command = tmp_path / "run.zarr", ["echo", "{a},{b},{seed}"]
    with subprocess.Popen([sys.executable, "-c", KILLED, store, *command], start_new_session=True) as job:
        while len(list(store.glob("commits/0*.json"))) < 2 and job.poll() is None:
            time.sleep(0.01)
        os.killpg(job.pid, signal.SIGKILL)
    kept = Store(store)[:]
    toy = CommandSimulator(command, BOX, output="-", rows_per_seed=1)
    n = len(kept) + 2
    whole = run(toy, n)
    assert 10 <= len(kept) < 9999 and torch.equal(kept.x, whole.x[kept.row])
    assert torch.equal(run(toy, n, store=store)[:].x, whole.x)


def test_a_campaign_of_programs_that_is_told_to_end_goes_on(tmp_path):
    """The signal comes while the program of row 3 runs, which ends well."""
    text = f"case {{a}} in 1.7*) mkdir '{tmp_path}/told' && kill -TERM $PPID;; esac; sleep 0.1; echo {{a}},{{seed}}"
    toy = CommandSimulator(["sh", "-c", text], BOX, output="-", rows_per_seed=1)
    with pytest.raises(SystemExit) as caught, terminable():
        run_at(toy, 0, 1, 0, 1.7, 0, 1, store=tmp_path / "run.zarr")
    assert caught.value.code == 143 and len(Store(tmp_path / "run.zarr")) == 4
    made = run_at(toy, 0, 1, 0, 1.7, 0, 1, store=tmp_path / "run.zarr")[:]
    assert made.valid.all() and len(made.x[:, 1].unique()) == 6


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


def test_what_a_program_that_failed_began_is_ended(tmp_path):
    with pytest.raises(SimulatorError, match="code 3"):
        run(CommandSimulator(["sh", "-c", f"{NAP} & exit 3"], BOX, rows_per_seed=1, retries=0))
    assert not asleep()
