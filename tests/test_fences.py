"""The layout's promises: whose code the five names are, and who may import whom."""

import ast
import importlib.util
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("search_spaces", "trainables", "tune", "results", "serve")
MAY_IMPORT = {
    "search_spaces": set(),
    "results": set(),
    "trainables": {"search_spaces"},
    "serve": {"results"},
    "tune": {"search_spaces", "trainables", "results"},
}


@pytest.mark.parametrize("package", PACKAGES)
def test_name_resolves_inside_the_repository(package: str) -> None:
    """Other projects install importable packages called `tune` and `results`."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    assert Path(spec.origin).is_relative_to(ROOT)


@pytest.mark.parametrize("package", PACKAGES)
def test_arrows(package: str) -> None:
    """Every import statement, those inside functions too, follows the arrows of the design."""
    wrong = []
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                names = [node.module]
            for name in names:
                target = name.split(".")[0]
                if target in PACKAGES and target not in MAY_IMPORT[package] | {package}:
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} imports {name}")
    assert wrong == []


def test_git_ignores_none_of_the_packages() -> None:
    """An unanchored `results/` in .gitignore would drop source from git and from Ray's upload."""
    paths = [f"{package}/x.py" for package in PACKAGES]
    found = subprocess.run(
        ["git", "check-ignore", *paths], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.stdout == ""
