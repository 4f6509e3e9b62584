"""What every test runs under: one thread, no display; and a working folder with modules of a user's own."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", MPLBACKEND="Agg")  # before torch is imported; workers inherit it

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A working folder with the modules in the test file's OWN; reports and checks, a second each, are left out."""
    own: dict[str, str] = request.module.OWN
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sbi_core.report.write_report", lambda path, results: path.touch())
    monkeypatch.setattr("sbi_core.stages.with_checks", lambda results, *given, **options: results)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name, text in own.items():
        (tmp_path / f"{name}.py").write_text(text)
    yield tmp_path
    for name in own:
        sys.modules.pop(name, None)
