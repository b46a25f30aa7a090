"""Foreign text in Markdown: shown as it is written, never read as markup, HTML or a link."""

import re

from results.formatting import plain

# An underscore inside a word is no markup. Bare addresses become links without any mark.
MARKS = re.compile(r"[\\`*{}\[\]<>#|~$!&@]|(?<!\w)_|_(?!\w)|:(?=//)|(?<=\bwww)\.")
FIRST = re.compile(r"^([-+=]|\d{1,9}(?=[.)]))")  # would begin a list, or underline a heading


def literal(text: object) -> str:
    """One line of running text."""
    line = " ".join(plain(text).split())
    line = MARKS.sub(lambda found: "\\" + found[0], line)
    found = FIRST.match(line)
    if found is None:
        return line
    head = found[0]
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
