"""The Python of the guide on weighted events runs as it stands, block after block, and its limit is the exact one."""

import pytest
import torch
from guides import run_guide

from sbi_core.inference.frequentist.record import Limits


@pytest.mark.slow
def test_guide(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = run_guide("weighted_events.md", 7)
    made = names["made"]
    assert torch.allclose(names["events"].rate(made.benchmarks), made.weights.sum(0), rtol=1e-9)
    found, exact = names["found"], names["exact"]
    assert isinstance(found, Limits)
    ours, true = (limit.interval(0.95)[0] for limit in (found, exact))
    width = true.high - true.low
    assert 0 < width < 0.2 and true.low < 0.05 < true.high
    assert abs(ours.low - true.low) < 0.15 * width and abs(ours.high - true.high) < 0.15 * width
    assert f"{names['merged'].cells}" in capsys.readouterr().out
    again = names["Library"]()
    assert torch.allclose(again.coefficients, names["events"].coefficients) and not torch.equal(again.x, made.x)
    assert [len(part) for part in again.split(0.1, seed=1)] == [27_000, 3_000]
