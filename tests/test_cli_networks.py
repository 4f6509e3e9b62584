"""`sbi-run` with a network of one's own as embedding."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from sbi_core.cli import main

WORLD = ["simulator=linear_gaussian", "simulator.dim=2", "loss=carl", "x_obs=[0.5,0.1]"]
QUICK = [*WORLD, "n_simulations=100", "training.max_epochs=2", "seed=1"]
NET = "estimator.embedding._target_=my_nets.Net"
NETWORKS = """
from pathlib import Path
from torch import nn

Path("imported").touch()


class Net(nn.Sequential):
    def __init__(self, features=3):
        super().__init__(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, features))


class Other(Net):
    pass
"""
OWN = {"my_nets": NETWORKS}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose embedding has five features; to be copied, not changed."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        (folder / "my_nets.py").write_text(NETWORKS)
        assert main([*QUICK, NET, "estimator.embedding.features=5", "run_dir=run"]) == 0
    sys.modules.pop("my_nets", None)
    return folder / "run"


def test_a_run_with_a_network_of_ones_own_is_carried_on(here: Path, finished: Path) -> None:
    shutil.copytree(finished, "run")
    assert json.loads(Path("run/run.json").read_text())["settings"]["estimator"]["embedding"] == {
        "_target_": "my_nets.Net",
        "features": 5,
    }
    before = json.loads(Path("run/summary.json").read_text())["numbers"]["theta_1 mean"]["value"]
    assert main(["run_dir=run", NET, "x_obs=[-1,-1]"]) == 0
    after = json.loads(Path("run/summary.json").read_text())["numbers"]["theta_1 mean"]["value"]
    assert after != before, "another observation"


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ([], f"names estimator.embedding._target_ = my_nets.Net, which is code. If you trust it, say so: {NET}"),
        (["estimator=ratio"], "estimator.embedding"),
        (["estimator.embedding._target_=my_nets.Other"], "contradicts run_dir = run"),
        ([NET, "estimator.embedding.features=4"], "estimator.embedding.features = 4 contradicts run_dir = run"),
    ],
)
def test_code_that_a_folder_names_is_run_only_if_the_command_names_it_too(
    here: Path, finished: Path, named: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, "run")
    assert main(["run_dir=run", "x_obs=[-1,-1]", *named]) == 2
    assert said in capsys.readouterr().err
    assert not Path("imported").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["estimator.embedding._target_=my_nets.Nett"], "did you mean 'Net'?"),
        ([NET, "estimator.embedding.featurs=4"], "my_nets.Net has no such option; did you mean 'features'?"),
        ([NET, "estimator.embedding.features=-1"], "estimator.embedding my_nets.Net cannot be made with"),
        ([NET, "simulator.dim=3", "x_obs=null"], "Net fails on x of zeros (2, 3)"),
        (["estimator.embedding._target_=cnn"], "for one of ours say estimator.embedding.name=cnn"),
        (["estimator.embedding._target_=os.system"], "os.system is refused: expected a subclass of Module"),
    ],
)
def test_mistakes_fail_before_simulating(
    here: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*QUICK, *options]) == 2
    assert said in capsys.readouterr().err
    assert not Path("runs").exists()
