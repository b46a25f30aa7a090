"""Markdown from templates; foreign text in it is never read as markup, HTML or a link."""

import re
from pathlib import Path

from results.formatting import compact, count, plain

# An underscore inside a word is not markup. Bare addresses become links without any mark.
MARKS = re.compile(r"[\\`*{}\[\]<>#|~$!&@]|(?<!\w)_|_(?!\w)|:(?=//)|(?<=\bwww)\.")
FIRST = re.compile(r"^([-+=]|\d{1,9}(?=[.)]))")  # would begin a list, or underline a heading


def inline(text: object) -> str:
    """One line of text inside a line: in the cell of a table no list and no heading begins."""
    return MARKS.sub(lambda match: "\\" + match[0], " ".join(plain(text).split()))


def literal(text: object) -> str:
    """One line of running text."""
    line = inline(text)
    first = FIRST.match(line)
    if first is None:
        return line
    head = first[0]
    return f"{head}\\{line[len(head) :]}" if head[0].isdigit() else f"\\{line}"


def code(text: object) -> str:
    """A name in running text, as code: between more backticks than it has in a row."""
    line = " ".join(plain(text).split())
    fence = "`" * (max(map(len, re.findall("`+", line)), default=0) + 1)
    pad = " " if line.startswith("`") or line.endswith("`") or not line else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def cell(text: object) -> str:
    """A name in a table, as code; a table ends its cells at `|` even there."""
    return code(text).replace("|", "\\|")


def render(template: str, **values: object) -> str:
    """Fill a template of this folder; the filters make text fit for its place."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters |= {"literal": literal, "inline": inline, "code": code, "cell": cell}
    environment.filters |= {"compact": compact, "count": count}
    return environment.get_template(template).render(**values)
