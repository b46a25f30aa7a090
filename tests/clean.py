"""A Python that knows the installed libraries and nothing of this project: whoever downloads."""

import subprocess
import sys
from pathlib import Path

from hub import Hub
from searching import HANG

# An editable install puts the checkout on the path, by a .pth file or a finder.
START = """
import importlib.util, os, sys
sys.path[:] = [p for p in sys.path if not os.path.isdir(os.path.join(p, "trainables"))]
sys.meta_path[:] = [f for f in sys.meta_path if "__editable__" not in getattr(f, "__module__", "")]
for name in ("search_spaces", "trainables", "tune", "results", "serve"):
    assert importlib.util.find_spec(name) is None, name
"""


def python(hub: Hub, home: Path, code: str, *arguments: str) -> str:
    """Run code with the Hub on loopback and an empty cache; return the last line it prints.

    Args:
        hub: where downloads come from.
        home: the process's folder, and its cache.
        code: what to run.
        arguments: for `sys.argv`.
    """
    home.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-I", "-c", START + code, *arguments],
        env={**hub.environment(home / "hf"), "PATH": "/usr/bin", "CUDA_VISIBLE_DEVICES": ""},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]
