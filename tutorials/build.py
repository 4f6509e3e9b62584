"""Make the notebooks from their text files: python tutorials/build.py, or of some: python tutorials/build.py 02 04

Every tutorials/NN_name.py (percent format) is executed and written with its outputs as tutorials/NN_name.ipynb. The
picture of a cell with the tag figure:NAME is also written to tutorials/figures/NAME.png.
"""

import base64
import io
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).parent


def sources() -> list[Path]:
    """Return the text files of all notebooks."""
    return sorted(HERE.glob("[0-9][0-9]_*.py"))


def read(source: Path) -> Any:
    """Read a text file as a notebook without outputs; ids number the cells, so that equal text gives equal files."""
    notebook = jupytext.read(source, fmt="py:percent")
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:02d}"
    return notebook


def execute(notebook: Any, *, fast: bool, folder: Path, timeout: float = 600) -> Any:
    """Execute a notebook in `folder` by a kernel of this very interpreter, whatever kernels are registered."""
    with tempfile.TemporaryDirectory() as home:
        spec = Path(home, "kernels", "this")
        spec.mkdir(parents=True)
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        kernel = {"argv": command, "display_name": "Python 3", "language": "python"}
        (spec / "kernel.json").write_text(json.dumps(kernel))
        specs = KernelSpecManager(kernel_dirs=[str(spec.parent)], ensure_native_kernel=False)
        ports = {"transport": "ipc", "ip": str(Path(home, "port"))}  # files instead of network ports
        manager = AsyncKernelManager(kernel_name="this", kernel_spec_manager=specs, **ports)
        path = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "IPYTHONDIR": home}
        environment.pop("MPLBACKEND", None)  # the kernel draws into the notebook
        environment.pop("SBI_FAST", None)
        if fast:
            environment["SBI_FAST"] = "1"
        client = NotebookClient(notebook, km=manager, timeout=timeout, resources={"metadata": {"path": str(folder)}})
        client.execute(env=environment, cleanup_kc=True)  # nbclient leaves a kernel alone that it was given
    return notebook


def pictures(notebook: Any) -> dict[str, bytes]:
    """Return name -> PNG of the cells that are tagged figure:NAME."""
    found = {}
    for cell in notebook.cells:
        for tag in cell.metadata.get("tags", []):
            if tag.startswith("figure:"):
                image = next(o["data"]["image/png"] for o in cell.outputs if "image/png" in o.get("data", {}))
                found[tag.removeprefix("figure:")] = base64.b64decode(image)
    return found


def smaller(image: str) -> str:
    """Reduce a PNG (base64) to 256 colours."""
    reduced = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(image))) as full:
        full.convert("RGB").quantize(256).save(reduced, format="PNG", optimize=True)
    return base64.b64encode(reduced.getvalue()).decode()


def tidy(notebook: Any) -> Any:
    """Remove what differs from run to run and from machine to machine."""
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                if image := output.get("data", {}).get("image/png"):
                    output["data"]["image/png"] = smaller(image)
    return notebook


def main() -> None:
    for source in sources():
        if sys.argv[1:] and source.stem[:2] not in sys.argv[1:]:
            continue
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            notebook = tidy(execute(read(source), fast=False, folder=Path(folder)))
        nbformat.write(notebook, source.with_suffix(".ipynb"))
        for name, content in pictures(notebook).items():
            (HERE / "figures").mkdir(exist_ok=True)
            (HERE / "figures" / f"{name}.png").write_bytes(content)
        print(f"{source.stem}: {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
