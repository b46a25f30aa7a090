"""Signals that end a command which can be resumed, and what it prints then."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console

NOTICES = (signal.SIGTERM, signal.SIGHUP)  # from a cluster; from a terminal that goes away
_TERMINALS = [number for number in (1, 2) if os.isatty(number)]  # asked now: later they may be gone


@contextmanager
def resumable(command: str, errors: Console) -> Iterator[None]:
    """Print the command that resumes if the block is interrupted."""
    try:
        with terminable():
            yield
    except KeyboardInterrupt:
        line = f"Interrupted. Resume with: {command}"
        errors.print(line, highlight=False, markup=False, soft_wrap=True)
        raise


@contextmanager
def terminable() -> Iterator[None]:
    """Treat SIGTERM, a cluster's notice, and SIGHUP, a lost terminal, like Ctrl-C in the block."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with handled(interrupt, *NOTICES):
        yield


@contextmanager
def handled(
    handler: Callable[[int, FrameType | None], None], *numbers: signal.Signals
) -> Iterator[None]:
    """Handle signals in the block, in the main thread, unless they are ignored, as under nohup.

    After SIGHUP nothing more is written to the terminal: it is gone, and each line would fail.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            for terminal in _TERMINALS:
                os.dup2(os.open(os.devnull, os.O_WRONLY), terminal)
            _TERMINALS.clear()
        handler(number, frame)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: old for number, old in before.items() if old is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
