"""Names of repositories, branches and tags that the Hub takes, and the token to write with."""

import re
from urllib.parse import urlsplit

from search_spaces.errors import UserError

COMMIT = re.compile(r"[0-9a-f]{40}")
# As git has it, and without what a shell or an address would read otherwise.
REF = re.compile(r"(?!.*(\.\.|//|/\.|\.lock(/|$)|[./]$))[\w][\w./-]*", re.ASCII)


def check_name(repo: str, or_folder: bool = True) -> None:
    """Refuse a name that cannot be a repository's.

    Args:
        repo: `name/repo`, or the name alone.
        or_folder: a local folder would do as well.

    Raises:
        UserError: it says how one is written.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        folder = ", or start a local folder with ./" if or_folder else ""
        raise UserError(
            f"{repo!r} is not the name of a repository on the Hub; write it as `name/repo`{folder}"
        ) from error


def check_branch(name: str) -> None:
    """Refuse a name that git would not give a branch.

    Raises:
        UserError: with what is allowed.
    """
    if not REF.fullmatch(name):
        raise UserError(
            f"--revision {name!r} cannot be a branch: use letters, digits, `-`, `_`, `.` and `/`, "
            "and begin with a letter or a digit."
        )
    if name.startswith("refs/") or COMMIT.fullmatch(name):
        raise UserError(
            f"--revision {name!r} reads as a reference or a commit; give a branch's own name."
        )


def check_endpoint(endpoint: str | None) -> None:
    """Refuse an address that the client could not even read.

    Raises:
        UserError: it names HF_ENDPOINT.
    """
    from huggingface_hub import constants

    address = endpoint or constants.ENDPOINT
    try:
        _ = urlsplit(address).port  # read, it is checked
    except ValueError as error:
        raise UserError(
            f"The Hub's address {address!r} is not valid ({error}); fix or unset HF_ENDPOINT."
        ) from error


def tag_of(*parts: str) -> str:
    """Make a name that git takes for a tag of a run's name and what else tells pushes apart."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts))
    name = re.sub(r"\.{2,}", ".", name).strip(".-")
    return re.sub(r"\.lock$", "-lock", name) or "run"


def token_here(token: str | None) -> str:
    """Return the token to write with: the given one, HF_TOKEN, or the one of `hf auth login`.

    Raises:
        UserError: there is none.
    """
    from huggingface_hub import get_token

    token = token or get_token()
    if not token:
        raise UserError(
            "There is no Hugging Face token on this machine; run `hf auth login` with a token that "
            "may write, or set HF_TOKEN, then push again."
        )
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise UserError(
            "The Hugging Face token of this machine holds characters that no token has; copy it "
            "again, with `hf auth login` or into HF_TOKEN."
        )
    return token
