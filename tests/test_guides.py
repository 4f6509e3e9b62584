"""The Python of the guide runs as it stands, block after block."""

import pytest
from guides import run_guide

from sbi_core import Posterior
from sbi_core.design import Choice, Loop


def test_which_interface(capsys: pytest.CaptureFixture[str]) -> None:
    names = run_guide("which_interface.md", 5)
    assert names["rows"].failures and capsys.readouterr().out.endswith("of 500 failed\n")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sbi_core.errors.SbiWarning")
def test_design(capsys: pytest.CaptureFixture[str]) -> None:
    names = run_guide("design.md", 4)
    assert isinstance(names["choice"], Choice) and isinstance(names["loop"], Loop)
    assert isinstance(names["posterior"], Posterior)
    assert abs(float(capsys.readouterr().out.split()[0]) - 0.176) < 0.005, "the gain it promises"
