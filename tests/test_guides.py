"""The Python of the guide on design runs as it stands, block after block."""

import re
from pathlib import Path

import pytest

from sbi_core import Posterior
from sbi_core.design import Choice, Loop

GUIDE = Path(__file__).parent.parent / "tutorials" / "guide" / "design.md"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sbi_core.errors.SbiWarning")
def test_design(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    blocks = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) == 4
    for block in blocks:
        exec(block, names)
    assert isinstance(names["choice"], Choice) and isinstance(names["loop"], Loop)
    assert isinstance(names["posterior"], Posterior)
    assert abs(float(capsys.readouterr().out.split()[0]) - 0.176) < 0.005, "the gain it promises"
