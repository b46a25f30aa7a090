"""Names of repositories, branches and tags that the Hub takes, and the token to write with."""

import re

from results.errors import UserError

# As git has it, and without what a shell or an address would read otherwise.
REF = re.compile(r"(?!.*(\.\.|//|/\.|\.lock(/|$)|[./]$))[\w][\w./-]*", re.ASCII)


def check_name(repo: str) -> None:
    """Refuse a name that can be no repository's.

    Raises:
        UserError: it says how one is written.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(
            f"{repo!r} is no name of a repository on the Hub; write it as `name/repo`, or start a "
            "local folder with ./"
        ) from error


def check_branch(name: str) -> None:
    """Refuse a name that git would not give a branch.

    Raises:
        UserError: with what is allowed.
    """
    if not REF.fullmatch(name):
        raise UserError(
            f"--revision {name!r} can be no branch: use letters, digits, `-`, `_`, `.` and `/`, "
            "and begin with a letter or a digit."
        )


def tag_of(*words: str) -> str:
    """Make a name that git takes for a tag of a run's name and what else tells pushes apart."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(words))
    name = re.sub(r"\.{2,}", ".", name).strip(".-")
    return re.sub(r"\.lock$", "-lock", name) or "run"


def token_here(token: str | None) -> str:
    """Return the token to write with: the given one, HF_TOKEN, or the one of `hf auth login`.

    Raises:
        UserError: there is none.
    """
    from huggingface_hub import get_token

    found = token or get_token()
    if not found:
        raise UserError(
            "There is no Hugging Face token on this machine; run `hf auth login` with a token that "
            "may write, or set HF_TOKEN, then push again."
        )
    return found
