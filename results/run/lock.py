"""Whether a process drives a run: its driver holds a lock on the run folder until it ends.

Process numbers are used again and host names change. A lock ends with its process.
"""

import fcntl
import os
from pathlib import Path

from results.run import layout


def driven(folder: Path) -> bool:
    """Return whether a process drives a run, which is true unless its lock is known to be free.

    It is not known where the file system has no locks, and where this user may not read the file.
    Nothing is created. For microseconds this process shares the lock; `tune.record.claim` waits
    for that.
    """
    try:
        descriptor = os.open(folder / layout.LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
