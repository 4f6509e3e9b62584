"""Stopping in good order: signals that end a campaign after the block in progress, and time limits on one call."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

GRACE = 5.0
"""Seconds after its time limit at which a call that does not end ends its process."""


WATCH = 0.5
"""Seconds between two looks of a worker at the process that began it."""


class RowTimeout(BaseException):
    """A call took longer than its limit; no subclass of Exception, so that the code it stops does not swallow it."""


class Ended(SystemExit):
    """A signal ends the program, with the code 128 + its number; no mistake of the code that it comes upon."""

    code: int

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


@dataclass
class Stop:
    """Whether a signal has asked to end.

    Attributes:
        signal: its number; 0 for none.
        notes: folder that worker processes look at; a file `stop` in it asks them to end too.
    """

    signal: int = 0
    notes: Path | None = None

    def request(self, number: int) -> None:
        """Ask to end after what is in progress."""
        self.signal = number
        if self.notes is not None:
            (self.notes / "stop").touch()
        print("finishing what is in progress; interrupt again to stop at once.", file=sys.stderr)


def ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing on a signal; unlike `signal.SIG_IGN`, this is not inherited by programs that are begun."""


def serve(parent: int) -> None:
    """Make this process a worker of the process `parent`: it leaves signals to that one, and ends with it."""
    signal.signal(signal.SIGINT, ignore)
    signal.signal(signal.SIGTERM, ignore)

    def watch() -> None:
        while True:
            time.sleep(WATCH)
            end_with(parent)

    threading.Thread(target=watch, daemon=True).start()


def end_with(parent: int) -> None:
    """End this process at once if the process `parent`, which began it, is gone."""
    if os.getppid() != parent:
        os._exit(1)


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Let the first Ctrl-C or SIGTERM ask to end in good order, and the second end at once.

    The block of code looks at `Stop.signal` and returns early. Outside the main thread signals stay as they are, and so
    do those that are ignored.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: old for number, old in handlers.items() if old not in (None, signal.SIG_IGN, ignore)}

    def ask(number: int, frame: FrameType | None) -> None:
        for each, handler in before.items():
            signal.signal(each, handler)
        stop.request(number)

    try:
        for number in before:
            signal.signal(number, ask)
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end a program as an exception does, with code 143, so that what is open is closed."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise Ended(number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def end(stop: Stop) -> None:
    """Do what the signal would have done: KeyboardInterrupt (exit code 130), or an exit with code 143 for SIGTERM."""
    handler = signal.getsignal(stop.signal)
    if callable(handler):
        signal.raise_signal(stop.signal)
    raise Ended(stop.signal)


@contextmanager
def alarm(seconds: float | None, note: Path | None) -> Iterator[None]:
    """Raise `RowTimeout` in a block of code that takes longer; code that cannot be interrupted ends with its process.

    Only the main thread can be interrupted; elsewhere, and without seconds, nothing happens.

    Args:
        seconds: the limit.
        note: file of a worker process that may be ended; the word "timeout" is added to it before it is.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise RowTimeout(f"no answer within {seconds:g} s")

    def leave() -> None:
        if note is not None:
            with note.open("a") as file:
                file.write(" timeout")
        os._exit(1)

    before = signal.signal(signal.SIGALRM, ring)
    watch = threading.Timer(seconds + GRACE, leave)
    watch.daemon = True
    try:
        if note is not None:
            watch.start()
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:  # even if the alarm, which rings once, has only just rung
        watch.cancel()
        signal.signal(signal.SIGALRM, before)
