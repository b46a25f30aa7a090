"""What a command that can be gone on with says when it ends early, even where it cannot itself."""

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console

NOTICES = (signal.SIGTERM, signal.SIGHUP)  # from a cluster; from a terminal that goes away
_TERMINALS = [number for number in (1, 2) if os.isatty(number)]  # once it is gone nobody can tell
# A shell waits for a line that never comes if this process dies: from SIGKILL, a machine without
# memory, or Ray's C++ core, which ends the process that it runs in when Ray's daemons are gone.
_WATCH = 'read -r ended || printf "%s\\n" "$0" >&2'


@contextmanager
def resumable(command: str, errors: Console) -> Iterator[None]:
    """Print `command`, which goes on, if the block is interrupted or its process dies."""
    sentence = (
        "preftune was ended from outside: it was killed, memory ran out, or Ray's own processes "
        f"died. Go on with: {command}"
    )
    watch = subprocess.Popen(
        ["/bin/sh", "-c", _WATCH, sentence], stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        with terminable():
            yield
    except KeyboardInterrupt:
        line = f"Interrupted. Go on with: {command}"
        errors.print(line, highlight=False, markup=False, soft_wrap=True)
        raise
    finally:
        watch.communicate(b"\n")


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
    """Handle signals in the block, in the main thread, unless they are ignored, as by nohup.

    After SIGHUP nothing is written to the terminal any more: it is gone, and each line would fail.
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
