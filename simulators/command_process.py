"""A program, run to its end or to its time limit, with what it said if it failed."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

TAIL = 1500
"""Characters of a program's standard error that are kept."""


class CommandFailed(RuntimeError):
    """A program could not be run, or ended with an error."""


def run(
    words: Sequence[str], folder: Path, seconds: float | None, environment: Mapping[str, str], output: Path | None
) -> None:
    """Run a program in a folder, and end its whole process group if anything goes wrong.

    Args:
        words: the program and its arguments.
        folder: its working folder, where `stderr.txt` is written.
        seconds: its time limit.
        environment: variables added to those of this process.
        output: file for its standard output, which is thrown away otherwise.

    Raises:
        CommandFailed: if it cannot be run, or ends with another code than 0; with the end of its standard error.
        TimeoutError: if it takes longer.
    """
    said = folder / "stderr.txt"
    with said.open("wb") as errors, (output or Path(os.devnull)).open("wb") as out:
        try:
            job = subprocess.Popen(
                words,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        except OSError as error:
            raise CommandFailed(f"{words[0]} cannot be run: {error}") from error
        try:
            code = job.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"{words[0]} had not ended after {seconds:g} s{_tail(said)}") from error
        finally:
            if job.poll() != 0:  # what it began may go on without it
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(job.pid, signal.SIGKILL)
                job.wait()
    if code:
        how = f"code {code}" if code > 0 else signal.Signals(-code).name
        raise CommandFailed(f"{words[0]} ended with {how}{_tail(said)}")


def _tail(path: Path) -> str:
    """The end of what a program wrote to its standard error."""
    text = path.read_text(encoding="utf-8", errors="replace").strip()
    return f"; it said: {text[-TAIL:]}" if text else ", and said nothing"
