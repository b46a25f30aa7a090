"""What a path in a search means: local, the word `quickstart`, or a Hub id pinned to a commit."""

from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi, constants, snapshot_download
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
from huggingface_hub.utils.tqdm import disable_progress_bars

from search_spaces.errors import UserError
from search_spaces.locations import QUICKSTART, is_hub_id

Kind = Literal["model", "dataset"]
NOUNS: dict[Kind, str] = {"model": "model", "dataset": "data set"}
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
    try:
        yield
    except HFValidationError as error:
        raise UserError(no_such_path(kind, path)) from error
    except HfHubHTTPError as error:
        raise UserError(refusal(kind, path, revision, error)) from error
    except LocalEntryNotFoundError as error:  # it could not be had, and is not in the cache
        if isinstance(error.__cause__, HfHubHTTPError):
            raise UserError(refusal(kind, path, revision, error.__cause__)) from error
        raise unreachable(kind, path) from error
    except (OfflineModeIsEnabled, HTTPError) as error:
        raise unreachable(kind, path) from error
    except JSONDecodeError as error:
        raise UserError(
            f"What answers at {constants.ENDPOINT} is not a Hub, so the {NOUNS[kind]} {path!r} "
            "cannot be fetched: fix HF_ENDPOINT or the proxy, or give a local path."
        ) from error


def refusal(kind: Kind, path: str, revision: str | None, error: HfHubHTTPError) -> str:
    """Say what the Hub's answer means for `path`, and the way out."""
    word, status = NOUNS[kind], error.response.status_code
    where = page(kind, path)
    if isinstance(error, GatedRepoError):
        return (
            f"The {word} {path!r} is gated: accept its terms on {where}, then log in with "
            "`hf auth login`."
        )
    if status == 401 and "Invalid credentials" in str(error):
        return (
            f"The Hub does not accept this machine's token, and so does not give the {word} "
            f"{path!r}: log in again with `hf auth login`, or fix HF_TOKEN."
        )
    # Whoever is not logged in gets 401 for what is private and for what is not there alike.
    if isinstance(error, RepositoryNotFoundError) or status == 401:
        return (
            f"There is no {word} {path!r}, neither on this machine nor on the Hub: check the "
            "spelling, or log in with `hf auth login` if it is private."
        )
    if isinstance(error, RevisionNotFoundError):
        return f"The {word} {path!r} has no revision {revision!r}: see its branches on {where}."
    if status == 429:
        return (
            f"The Hub has had too many requests to give the {word} {path!r} now (429): try again "
            "in some minutes, or log in with `hf auth login` for a higher limit."
        )
    return f"The Hub refused the {word} {path!r} ({status}): try again later, or see {where}."


def page(kind: Kind, path: str) -> str:
    """Return the address of a repository's page, on whichever Hub HF_ENDPOINT names."""
    return f"{constants.ENDPOINT}/{'' if kind == 'model' else 'datasets/'}{path}"


def unreachable(kind: Kind, path: str) -> UserError:
    """Say that only the Hub could have `path`, and that it does not answer."""
    return UserError(
        f"The Hub cannot be reached at {constants.ENDPOINT} to fetch the {NOUNS[kind]} {path!r}, "
        "which is neither on this machine nor whole in the cache: check the network and "
        "HF_HUB_OFFLINE, or give a local path."
    )


def no_such_path(kind: Kind, path: str) -> str:
    """Say that `path` is nowhere."""
    if kind == "model":
        return f"There is no model folder {path!r}: give a folder, a Hub id or `quickstart`."
    return (
        f"There is no data set {path!r}: give a .parquet, .jsonl or .jsonl.gz file, a folder, "
        "a Hub id or `quickstart`."
    )


def pin_dataset(path: str, revision: str | None) -> str | None:
    """Return the commit that a data set's revision names, or None if the Hub is out of reach.

    Raises:
        UserError: if the data set or revision does not exist or is gated.
    """
    with hub_errors("dataset", path, revision):
        try:
            info = HfApi().dataset_info(path, revision=revision, timeout=10)
        except HfHubHTTPError:
            raise
        except (OfflineModeIsEnabled, HTTPError):
            return None
        if info.gated:  # anybody may read about it, and only some its rows
            HfApi().auth_check(path, repo_type="dataset")
    return str(info.sha)


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
        if not folder.is_dir():  # nothing of it was worth fetching
            raise UserError(
                f"The model {str(path)!r} on the Hub has none of the files of a model that "
                "transformers can load (config.json, .safetensors): choose another repository or "
                "revision."
            )
        return folder, folder.name  # the cache keeps a snapshot in a folder called by its commit
    if revision is not None:
        raise UserError(
            f"`revision` {revision!r} has no effect for the local model {str(path)!r}: remove it, "
            "or give a Hub id."
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
