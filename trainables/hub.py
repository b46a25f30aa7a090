"""What a path in a search means: local, the word `quickstart`, or a Hub id pinned to a commit."""

import os.path
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of the client's HTTP library, whichever that is
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from huggingface_hub.utils.tqdm import disable_progress_bars

from trainables.errors import UserError

Kind = Literal["model", "dataset"]
WORDS: dict[Kind, str] = {"model": "model", "dataset": "data set"}

QUICKSTART = "quickstart"
CODE = "*.py"
# Weights as safetensors only: a pickle from a stranger can run code when it is loaded.
MODEL_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
# Copies of the same weights in other layouts, which repositories keep beside transformers' own.
NOT_MODEL_FILES = ["*/*.safetensors", "onnx/*", "original/*", "consolidated*"]


@contextmanager
def hub_errors(kind: Kind, path: str, revision: str | None) -> Iterator[None]:
    """Turn what the Hub client raises into one sentence about `path`.

    Raises:
        UserError: if it does not exist, is gated, or the Hub is out of reach.
    """
    word = WORDS[kind]
    page = f"https://huggingface.co/{'' if kind == 'model' else 'datasets/'}{path}"
    try:
        yield
    except GatedRepoError as error:
        raise UserError(
            f"The {word} {path!r} is gated: accept its terms on {page}, then log in with "
            "`hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"There is no {word} {path!r}, neither on this machine nor on the Hub: check the "
            "spelling, or log in with `hf auth login` if it is private."
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(
            f"The {word} {path!r} has no revision {revision!r}: see its branches on {page}."
        ) from error
    except HFValidationError as error:
        raise UserError(no_such_path(kind, path)) from error
    except HfHubHTTPError as error:
        raise UserError(
            f"The Hub refused the {word} {path!r} ({error.response.status_code}): try again later, "
            f"or see {page}."
        ) from error
    except (
        LocalEntryNotFoundError,  # the client's word for "unreachable, and not in the cache"
        OfflineModeIsEnabled,
        HTTPError,
    ) as error:
        raise unreachable(kind, path) from error


def unreachable(kind: Kind, path: str) -> UserError:
    """Say that only the Hub could have `path`, and that it does not answer."""
    return UserError(
        f"The Hub cannot be reached to fetch the {WORDS[kind]} {path!r}, which is neither on this "
        "machine nor in the cache: check the network and HF_HUB_OFFLINE, or give a local path."
    )


def no_such_path(kind: Kind, path: str) -> str:
    """Say that `path` is nowhere."""
    if kind == "model":
        return f"There is no model folder {path!r}: give a folder, a Hub id or `quickstart`."
    return (
        f"There is no data set {path!r}: give a .parquet, .jsonl or .jsonl.gz file, a folder, "
        "a Hub id or `quickstart`."
    )


def is_hub_id(path: str | Path) -> bool:
    """Tell whether `path` can only be on the Hub: it is not on disk and is spelt like a Hub id."""
    if isinstance(path, Path) or os.path.exists(os.path.expanduser(path)):
        return False
    try:
        validate_repo_id(path)
    except HFValidationError:
        return False
    return True


def pin_dataset(path: str, revision: str | None) -> str | None:
    """Return the commit that a data set's revision stands for, or None if the Hub is out of reach.

    Raises:
        UserError: if the data set or revision does not exist or is gated.
    """
    with hub_errors("dataset", path, revision):
        try:
            sha = HfApi().dataset_info(path, revision=revision, timeout=10).sha
        except (OfflineModeIsEnabled, HTTPError):
            return None
    return str(sha)


def snapshot(
    path: str | Path, revision: str | None = None, *, trust_remote_code: bool = False
) -> tuple[Path, str | None]:
    """Return a folder with a model's files and the commit it is pinned to (None if it was local).

    Args:
        path: a local folder, the word `quickstart`, or a Hub id, whose files are downloaded or
            taken from the cache.
        revision: branch, tag or commit of a Hub id.
        trust_remote_code: fetch the repository's Python files too.

    Raises:
        UserError: if it does not exist, is gated, or the Hub is out of reach.
    """
    if path != QUICKSTART and is_hub_id(path):
        disable_progress_bars()
        with hub_errors("model", str(path), revision):
            folder = Path(
                snapshot_download(
                    str(path),
                    revision=revision,
                    allow_patterns=[*MODEL_FILES, CODE] if trust_remote_code else MODEL_FILES,
                    ignore_patterns=NOT_MODEL_FILES,
                )
            )
        return folder, folder.name  # the cache keeps a snapshot in a folder called by its commit
    if revision is not None:
        raise UserError(
            f"`revision` {revision!r} is of no use with the local model {str(path)!r}: only a Hub "
            "id has revisions."
        )
    if path == QUICKSTART:
        from trainables.quickstart.world import BASE

        return BASE, None
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(no_such_path("model", str(path)))
    return folder.resolve(), None


def first_sentence(error: BaseException) -> str:
    """Cut a library's message to its first sentence, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.split(". ")[0].rstrip(".") + "."
