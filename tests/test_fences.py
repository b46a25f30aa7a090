"""The layout's promises: whose code the five names are, and who may import whom."""

import ast
import importlib.util
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("search_spaces", "trainables", "tune", "results", "serve")
MAY_IMPORT: dict[str, set[str]] = {
    "search_spaces": set(),
    "results": {"search_spaces"},
    "trainables": {"search_spaces"},
    "serve": {"results", "search_spaces"},
    "tune": {"search_spaces", "trainables", "results"},
}


@pytest.mark.parametrize("package", PACKAGES)
def test_name_resolves_inside_the_repository(package: str) -> None:
    """Other projects install importable packages called `tune` and `results`."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    assert Path(spec.origin).is_relative_to(ROOT)


def imports() -> dict[str, set[str]]:
    """Each module of the packages and what it imports of them, inside functions too."""
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    found: dict[str, set[str]] = {name: set() for name in files}
    for name, path in files.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                inside = [f"{node.module}.{alias.name}" for alias in node.names]
                targets = [one if one in files else node.module for one in inside]
            else:
                continue
            found[name] |= {one for one in targets if one.split(".")[0] in PACKAGES}
    return found


def test_arrows() -> None:
    """Every import statement, those inside functions too, follows the arrows of the design."""
    wrong = [
        f"{name} imports {target}"
        for name, targets in imports().items()
        for target in targets
        if (there := target.split(".")[0]) != (here := name.split(".")[0])
        and there not in MAY_IMPORT[here]
    ]
    assert wrong == []


def test_no_circle_between_modules() -> None:
    """Neither at import nor inside functions, where a circle is only hidden."""
    graph = {name: targets - {name} for name, targets in imports().items()}
    with suppress(StopIteration):
        while True:  # take away what imports nothing that is left
            leaf = next(name for name, targets in graph.items() if not targets & graph.keys())
            del graph[leaf]
    assert graph == {}


def test_driver_starts_without_torch() -> None:
    """It takes seconds to import, at every command, and the driver computes nothing with it."""
    code = (
        "import sys, tune.run, tune.cli; print({'torch', 'transformers', 'trl'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_git_ignores_none_of_the_packages() -> None:
    """An unanchored `results/` in .gitignore would drop source from git and from Ray's upload."""
    paths = [f"{package}/x.py" for package in PACKAGES]
    found = subprocess.run(
        ["git", "check-ignore", *paths], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.stdout == ""


def test_design_names_every_module() -> None:
    """A newcomer looks for a module in the layout of the design, which must have all of them."""
    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    layout = design.partition("## 2. Layout")[2].partition("## 3.")[0]
    words = set(re.findall(r"\w+", layout))
    names = {name.rpartition(".")[2] for name in imports() if name.count(".")}
    assert sorted(names - words - {"__main__"}) == []
