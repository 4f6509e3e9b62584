"""The notebooks: in step with their text files, executed in fast mode, with outputs that a reader can trust."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from tutorials import build

SOURCES = build.sources()
LARGEST = 600_000
by_notebook = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)


def committed(source: Path) -> Any:
    return nbformat.read(source.with_suffix(".ipynb"), 4)


def cells(notebook: Any) -> list[tuple[str, str, list[str]]]:
    return [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in notebook.cells]


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_every_notebook_has_its_text_file() -> None:
    assert {path.stem for path in build.HERE.glob("*.ipynb")} == {source.stem for source in SOURCES}
    assert SOURCES


@by_notebook
def test_pair_is_in_step(source: Path) -> None:
    assert cells(committed(source)) == cells(build.read(source))


@by_notebook
def test_pair_saboteur(source: Path) -> None:
    changed = build.read(source)
    changed.cells[-1].source += "\n"
    assert cells(committed(source)) != cells(changed)


@by_notebook
def test_outputs(source: Path) -> None:
    notebook = committed(source)
    numbers = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert numbers == list(range(1, len(numbers) + 1))  # executed from top to bottom, once
    assert {output.output_type for output in outputs(notebook)} <= {"stream", "display_data", "execute_result"}
    assert source.with_suffix(".ipynb").stat().st_size <= LARGEST
    for name, content in build.pictures(notebook).items():
        assert (build.HERE / "figures" / f"{name}.png").read_bytes() == content


@by_notebook
def test_runs_in_fast_mode(source: Path, tmp_path: Path) -> None:
    notebook = build.execute(build.read(source), fast=True, folder=tmp_path)
    assert not [output for output in outputs(notebook) if output.output_type == "error"]
    assert list(tmp_path.iterdir()) == []


def test_false_claim_is_noticed(tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("assert 1 + 1 == 3")])
    with pytest.raises(CellExecutionError, match="AssertionError"):
        build.execute(notebook, fast=True, folder=tmp_path)
