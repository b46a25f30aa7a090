"""Command lines that are shown to the user, quoted for a shell."""

import shlex
from pathlib import Path


def shown(path: Path) -> Path:
    """Return a path as the user would write it: relative to the working folder if it is below."""
    path, here = path.absolute(), Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def command_line(verb: str, run: Path, *arguments: str) -> str:
    """Return the `preftune` command line that does something with a run.

    Args:
        verb: such as `resume`.
        run: the run folder; `--storage` is added where it is not below `runs`.
        arguments: what comes after the run's name.
    """
    storage = shown(run).parent
    option = () if storage == Path("runs") else ("--storage", str(storage))
    return shlex.join(["preftune", verb, run.name, *arguments, *option])
