"""Failures on purpose: an answer other than the right one, or a connection that breaks."""

import re
from dataclasses import dataclass, field


@dataclass
class Fault:
    """What happens to the next requests that match.

    Attributes:
        method: HTTP method, or `*`.
        path: a regular expression that must be found in the path.
        status: answer with this status; None cuts the connection.
        headers: of that answer, such as `Retry-After` or `X-Error-Code`.
        message: the answer's error.
        cut_after: bytes after which the connection breaks: of the request's body, or of the
            answer's where the request has none.
        times: how many requests it still hits; None hits all.
        hits: how many it has hit.
    """

    method: str
    path: str
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    message: str = "told to fail"
    cut_after: int = 0
    times: int | None = None
    hits: int = 0

    def hit(self, method: str, path: str) -> bool:
        """Tell whether a request is hit, and count it."""
        if self.method not in ("*", method) or not re.search(self.path, path):
            return False
        if self.times is not None and self.hits >= self.times:
            return False
        self.hits += 1
        return True
