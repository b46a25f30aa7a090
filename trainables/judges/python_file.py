"""A judge in a user's .py file: checked without running it, then loaded."""

import ast
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from search_spaces.errors import UserError


def from_file(path: str) -> Callable[..., Any]:
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise UserError(f"The judge `{path}` is not there: no such file as {file}.")
    spec = importlib.util.spec_from_file_location(f"judge_{file.stem}", file)
    assert spec is not None and spec.loader is not None  # a .py file always has a loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up the module of a class
    blaming_user(path, file, spec.loader.exec_module)(module)
    function = getattr(module, "judge", None)
    if not callable(function):
        raise UserError(f"The judge `{path}` defines no function `judge`: {NEEDED}.")
    return blaming_user(path, file, function)


def blaming_user(name: str, file: Path | None, function: Callable[..., Any]) -> Callable[..., Any]:
    """Turn an exception in a judge's code into one sentence with its line."""

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


NEEDED = "it needs `def judge(prompts: list[str], answers: list[str]) -> list[float]`"


def check(path: str) -> None:
    """Read a judge's file.

    Raises:
        UserError: it cannot be read, it is no Python, or it defines no `judge` of two arguments.
    """
    file = Path(path).expanduser()
    if file.suffix != ".py":
        raise UserError(
            f"The judge `{path}` is neither a .py file nor the folder of a reward model: name one "
            "of them, a Hub id or `quickstart`."
        )
    try:
        tree = ast.parse(file.read_bytes())
    except SyntaxError as error:
        raise UserError(
            f"The judge `{path}` is no Python (line {error.lineno}: {error.msg}): mend it."
        ) from error
    except (OSError, ValueError) as error:  # ValueError: NUL bytes
        raise UserError(f"The judge `{path}` cannot be read ({error}): mend it.") from error
    if not any(_binds(node) for node in ast.walk(tree)):
        raise UserError(f"The judge `{path}` defines no function `judge`: {NEEDED}.")
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == "judge" and not _takes_two(node):
            raise UserError(
                f"The judge `{path}` cannot be called with prompts and answers (line "
                f"{node.lineno}: judge({ast.unparse(node.args)})): {NEEDED}."
            )


def _binds(node: ast.AST) -> bool:
    """Tell whether a node may give `judge` a meaning: a definition, an assignment, an import."""
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
