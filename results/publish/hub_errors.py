"""What the Hub refuses, each refusal as one sentence; and what is worth another try."""

from json import JSONDecodeError
from typing import Any

# Too many requests, a server's own trouble, or somebody else's commit in between.
PASSING = frozenset({408, 409, 412, 425, 429, 500, 502, 503, 504})


def status(error: BaseException) -> int | None:
    """The HTTP status behind an error of huggingface_hub; None where no answer came."""
    response = getattr(cause(error), "response", None)
    return None if response is None else int(response.status_code)


def cause(error: BaseException) -> BaseException:
    """What an upload failed of: the client wraps it in a `RuntimeError` that says only where."""
    wrapped = error.__cause__
    return wrapped if isinstance(error, RuntimeError) and wrapped is not None else error


def passes(error: BaseException) -> bool:
    """Whether the same request may well succeed a little later."""
    if (answered := status(error)) is not None:
        return answered in PASSING
    return _unreached(cause(error))


def _unreached(error: BaseException) -> bool:
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled  # type: ignore[attr-defined]

    lost = isinstance(error, HTTPError | ConnectionError | TimeoutError)
    return lost and not isinstance(error, OfflineModeIsEnabled)


def patience(error: BaseException) -> float:
    """Seconds that the Hub asks to wait for; 0 where it does not say."""
    headers: Any = getattr(getattr(cause(error), "response", None), "headers", {})
    asked = str(headers.get("retry-after", ""))
    return float(asked) if asked.isdigit() else 0.0


def refusal(repo: str, kind: str, endpoint: str, error: BaseException) -> str:
    """One sentence on what failed and what to do about it.

    Args:
        repo: what was to be written to.
        kind: of repository; a model can go to a folder as well.
        endpoint: the Hub's address.
        error: what the client raised.
    """
    from huggingface_hub.errors import OfflineModeIsEnabled

    origin = cause(error)
    if isinstance(origin, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it to push to the Hub."
    if (answered := status(error)) is not None:
        return _answered(repo, answered, origin)
    reason = " ".join(str(origin).split()).rstrip(".") or type(origin).__name__
    if _unreached(origin) and origin is not error:
        return (
            f"The connection to the Hub at {endpoint} broke off during an upload to {repo} "
            f"({reason}); push again: files that have arrived are not sent again."
        )
    if _unreached(origin):
        folder = ", or push to a local folder such as ./model" if kind == "model" else ""
        return f"The Hub at {endpoint} cannot be reached ({reason}); check the connection{folder}."
    if isinstance(origin, JSONDecodeError):
        return (
            f"What answers at {endpoint} is not a Hub ({reason}); fix HF_ENDPOINT or the proxy, "
            f"then push to {repo} again."
        )
    return f"The Hub did not take the files of {repo}: {reason}."


def _answered(repo: str, status: int, error: Any) -> str:
    message = " ".join((error.server_message or "").split()).rstrip(".")
    detail = f"{status}: {message}" if message else str(status)
    if status == 401:
        return (
            f"The Hub does not accept the token for {repo} (401); log in again with `hf auth "
            "login`, with a token that may write."
        )
    if status == 403:
        return (
            f"The token may not write to {repo} ({detail}); use a token of role `write` and a user "
            "or organization that it belongs to."
        )
    if status == 404:
        return (
            f"The Hub knows no user or organization for {repo} ({detail}); check the part before "
            "the /."
        )
    if status in (409, 412):
        return f"Others were writing to {repo} at the same time ({detail}); push again."
    if status == 429:
        return f"The Hub takes no more requests for now ({detail}); push to {repo} again later."
    return f"The Hub refused {repo} ({detail}); push again later."
