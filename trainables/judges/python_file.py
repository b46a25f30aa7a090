"""A judge in a user's .py file: checked without running it, then loaded."""

import ast
import importlib.util
import sys
import traceback
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from search_spaces.errors import UserError

NEEDED = "it must define `def judge(prompts: list[str], answers: list[str]) -> list[float]`"


def from_file(path: str) -> Callable[..., Any]:
    """Return the function `judge` that a file defines.

    The file is executed once in a process for as long as its content stays the same: what it loads
    then serves every trial.

    Raises:
        UserError: the file is not there, fails, or defines no function `judge`. The function itself
            raises it when the user's code fails.
    """
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise UserError(f"The judge `{path}` does not exist: there is no file {file}.")
    module = blaming_user(path, file, _execute)(file, file.read_bytes())
    function = getattr(module, "judge", None)
    if not callable(function):
        raise UserError(f"The judge `{path}` defines no function `judge`: {NEEDED}.")
    return blaming_user(path, file, function)


@lru_cache(maxsize=1)  # workers are reused: the next trial of the search has the same judge
def _execute(file: Path, content: bytes) -> ModuleType:
    """Execute a file's content as a module of its own."""
    spec = importlib.util.spec_from_file_location(f"judge_{file.stem}", file)
    assert spec is not None  # a .py file always has a loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up the module of a class
    # Modules of the user's beside it; at the end, where they shadow no library.
    if (folder := str(file.parent)) not in sys.path:
        sys.path.append(folder)
    # Not by the loader: its bytecode cache may be of a file that has changed in the same second.
    exec(compile(content, str(file), "exec", dont_inherit=True), module.__dict__)
    return module


def blaming_user(name: str, file: Path | None, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function, whose exceptions become one sentence with the line in the user's file.

    Args:
        name: the judge, as the user knows it.
        file: where its code is; None for a judge that is not the user's.
    """

    def called(*args: Any) -> Any:
        try:
            return function(*args)
        except Exception as error:
            lines = [
                f.lineno
                for f in traceback.extract_tb(error.__traceback__)
                if f.filename == str(file)
            ]
            if isinstance(error, SyntaxError) and error.filename == str(file):
                lines.append(error.lineno)
            where = f" ({file}, line {lines[-1]})" if lines else ""
            message = error.msg if isinstance(error, SyntaxError) else str(error)
            raise UserError(
                f"The judge `{name}` failed{where}: {type(error).__name__}: {message}"
            ) from error

    return called


def check(path: str) -> None:
    """Check a judge's file without running it.

    Raises:
        UserError: it cannot be read, is not valid Python, or defines no `judge` of two arguments.
    """
    file = Path(path).expanduser()
    if file.suffix != ".py":
        raise UserError(
            f"The judge `{path}` is neither a .py file nor the folder of a reward model. Set "
            "`judge` to one of them, to a Hub id or to `quickstart`."
        )
    try:
        tree = ast.parse(file.read_bytes())
    except SyntaxError as error:
        raise UserError(
            f"The judge `{path}` is not valid Python (line {error.lineno}: {error.msg}). Fix it."
        ) from error
    except (OSError, ValueError) as error:  # ValueError: NUL bytes
        raise UserError(f"The judge `{path}` cannot be read ({error}). Fix it.") from error
    if not any(_binds(node) for node in ast.walk(tree)):
        raise UserError(f"The judge `{path}` defines no function `judge`: {NEEDED}.")
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == "judge" and not _takes_two(node):
            raise UserError(
                f"The judge `{path}` cannot be called with prompts and answers (line "
                f"{node.lineno}: judge({ast.unparse(node.args)})): {NEEDED}."
            )


def _binds(node: ast.AST) -> bool:
    """Return whether a node may define `judge`: a definition, an assignment or an import."""
    match node:
        case ast.FunctionDef(name="judge") | ast.ClassDef(name="judge"):
            return True
        case ast.Name(id="judge", ctx=ast.Store()):
            return True
        case ast.alias(name=name, asname=asname):
            return (asname or name) in ("judge", "*")
    return False


def _takes_two(function: ast.FunctionDef) -> bool:
    if function.decorator_list:
        return True  # a decorator may give it other arguments
    a = function.args
    positional = len(a.posonlyargs) + len(a.args)
    enough = positional >= 2 or a.vararg is not None
    return enough and positional - len(a.defaults) <= 2 and None not in a.kw_defaults
