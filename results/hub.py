"""Publish a run's model: one commit on the Hugging Face Hub, or a plain copy in a local folder."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from results.card import published_texts
from results.errors import UserError
from results.publish import candidate
from results.run import Run
from results.words import verdict_sentence

# All that ever leaves. A checkpoint folder also holds optimizer state and paths of this machine.
KINDS = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "README.md",
    "dpo.yaml",
)
TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


@dataclass(frozen=True)
class PushResult:
    """What was published, or would be."""

    where: str  # an address or a folder
    files: dict[str, int]  # name -> bytes
    commit: str | None  # its id on the Hub; None for a folder and for a dry run
    dry_run: bool
    trial: int


def push(
    run: Run,
    repo_or_folder: str,
    *,
    private: bool = False,
    dry_run: bool = False,
    force: bool = False,
    trial: int | None = None,
    token: str | None = None,
    endpoint: str | None = None,
) -> PushResult:
    """Publish the winner of a run, or a trial that kept its weights.

    Args:
        run: an opened run.
        repo_or_folder: `name/repo` on the Hub; or a folder: `./x`, `../x`, `/x`, `~/x` or one
            that exists.
        private: make the repository private; refused where it exists and is public.
        dry_run: only tell what would leave.
        force: publish without a passing verdict; the card then says so.
        trial: a trial other than the winner.
        token: a Hub token; default: the one of `hf auth login` or HF_TOKEN.
        endpoint: the Hub's address; default: huggingface_hub's.

    Raises:
        UserError: nothing to publish, the verdict does not stand behind it, or the Hub refused.
    """
    chosen = candidate(run, trial)
    if not chosen.passing and not force:
        raise UserError(
            f"Trial {chosen.number} of run {run.name} has no passing verdict, so it is not "
            f"published: {verdict_sentence(run)} Give --force to publish it all the same."
        )
    folder = is_folder(repo_or_folder)
    if not folder:
        _check_name(repo_or_folder)
    texts = published_texts(run, trial, None if folder else repo_or_folder)
    with _weights(run, chosen.number) as weights:
        sources = _sources(run, chosen.number, weights)
        files = {name: path.stat().st_size for name, path in sources.items()}
        files |= {name: len(text.encode()) for name, text in texts.items()}
        files = dict(sorted(files.items()))
        if folder:
            target = Path(repo_or_folder).expanduser().resolve()
            _check_folder(target)
            if not dry_run:
                _copy(sources, texts, target)
            return PushResult(str(target), files, None, dry_run, chosen.number)
        if dry_run:
            return PushResult(repo_or_folder, files, None, True, chosen.number)
        message = f"Publish trial {chosen.number} of preftune run {run.name}"
        url, commit = _upload(repo_or_folder, sources, texts, message, private, token, endpoint)
        return PushResult(url, files, commit, False, chosen.number)


def is_folder(repo_or_folder: str) -> bool:
    """Whether a target of `push` is a local folder rather than a repository."""
    path = repo_or_folder.replace(os.sep, "/")
    return (
        path in (".", "..", "~")
        or path.startswith(("./", "../", "/", "~/"))
        or (path != "" and Path(repo_or_folder).is_dir())
    )


def _check_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(
            f"{repo!r} is no name of a repository on the Hub; write it as `name/repo`, or start a "
            "local folder with ./"
        ) from error


@contextmanager
def _weights(run: Run, trial: int) -> Iterator[Path]:
    """Give the folder with a trial's weights; from object storage, a copy for as long as it lasts.

    Raises:
        UserError: they cannot be fetched.
    """
    if trial == (run.verdict() or {}).get("winner") and run.best is not None:
        yield run.best
        return
    kept = str(run.trial(trial).attrs.get("checkpoint") or run.trial_folder(trial) / "checkpoint")
    if "://" not in kept:
        yield run.folder / kept
        return
    from pyarrow import ArrowException, fs

    with tempfile.TemporaryDirectory(prefix="preftune-push-") as folder:
        try:
            files, path = fs.FileSystem.from_uri(kept)
            fs.copy_files(path, folder, source_filesystem=files)
        except FileNotFoundError as error:
            raise UserError(
                f"Trial {trial} of run {run.name} cannot be published: {kept} is gone. Weights are "
                "kept of the best few trials only."
            ) from error
        except (OSError, ArrowException) as error:
            raise UserError(
                f"The weights of trial {trial} of run {run.name} cannot be fetched from {kept} "
                f"({error}); check the endpoint and the credentials in the environment."
            ) from error
        yield Path(folder)


def _sources(run: Run, trial: int, weights: Path) -> dict[str, Path]:
    """Files to copy as they are: file name -> path, of the allowed kinds only."""
    found: dict[str, Path] = {}
    for home in (run.reference_tokenizer(), weights):  # the weights' own tokenizer goes first
        if home is not None and home.is_dir():
            found |= {
                path.name: path
                for path in home.iterdir()
                if path.is_file() and any(fnmatch(path.name, kind) for kind in KINDS)
            }
    if (weights / "adapter_config.json").is_file():
        raise UserError(
            f"Trial {trial} of run {run.name} cannot be published: it is a LoRA adapter, and only "
            "the winner's is merged into a whole model."
        )
    lacking = [kind for kind in ("config.json", "*.safetensors") if not list(weights.glob(kind))]
    if not any(name in found for name in TOKENIZER):
        lacking.append("a tokenizer")
    if lacking:
        raise UserError(
            f"Trial {trial} of run {run.name} cannot be published: {weights} has no "
            f"{' and no '.join(lacking)}. Weights are kept of the best few trials only."
        )
    for path in found.values():
        _check_whole(path, f"Trial {trial} of run {run.name}")
    return found


def _check_whole(path: Path, what: str) -> None:
    """Refuse a damaged file before anybody downloads it.

    Raises:
        UserError: weights shorter than they say they are, or JSON that is none.
    """
    from safetensors import SafetensorError, safe_open

    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="numpy"):
                pass  # opening compares the header with the size
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
    except (SafetensorError, ValueError, OSError) as error:
        raise UserError(
            f"{what} cannot be published: {path} is damaged ({error}). Restore it from a copy, or "
            "name another trial with --trial."
        ) from error


def _check_folder(target: Path) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError(f"{target} is a file; name a folder to publish into.")
    names = [path.name for path in target.iterdir()]
    earlier = {"dpo.yaml", "config.json"} <= set(names)
    foreign = [name for name in names if not any(fnmatch(name, kind) for kind in KINDS)]
    if names and (foreign or not earlier):
        raise UserError(
            f"{target} is not empty and not an earlier push (it holds {min(foreign or names)}); "
            "name a new or an empty folder."
        )


def _copy(sources: dict[str, Path], texts: dict[str, str], target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise UserError(
            f"{target} cannot be written ({error.strerror}); name a folder that can."
        ) from error
    new, old = staged / "new", staged / "old"
    new.mkdir()
    try:
        for name, path in sources.items():
            shutil.copyfile(path, new / name)
        for name, text in texts.items():
            (new / name).write_text(text, encoding="utf-8")
        if target.exists():
            target.rename(old)
        new.rename(target)
    except OSError as error:
        if old.exists() and not target.exists():
            old.rename(target)
        raise UserError(f"{target} could not be written ({error.strerror}).") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _upload(
    repo: str,
    sources: dict[str, Path],
    texts: dict[str, str],
    message: str,
    private: bool,
    token: str | None,
    endpoint: str | None,
) -> tuple[str, str]:
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    # HTTPError is the base of the client's network errors: httpx's in version 1, httpx2's in 2.
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        HfHubHTTPError,
        HTTPError,
        OfflineModeIsEnabled,
    )

    token = token or get_token()
    if not token:
        raise UserError(
            "There is no Hugging Face token on this machine; run `hf auth login` with a token that "
            "may write, or set HF_TOKEN, then push again."
        )
    api = HfApi(endpoint=endpoint, token=token, library_name="preftune")
    try:
        url = api.create_repo(repo, private=private or None, exist_ok=True)
        name = url.repo_id
        if private and not api.repo_info(name).private:
            raise UserError(
                f"{name} exists and is public; make it private on the Hub or choose another name."
            )
        written = {file: text.encode() for file, text in texts.items()}
        contents: dict[str, Path | bytes] = {**sources, **written}
        operations = [CommitOperationAdd(file, content) for file, content in contents.items()]
        commit = api.create_commit(name, operations, commit_message=message)
    except OfflineModeIsEnabled as error:
        raise UserError("HF_HUB_OFFLINE is set; unset it to push to the Hub.") from error
    except HfHubHTTPError as error:
        raise UserError(_refusal(repo, error)) from error
    except (HTTPError, OSError) as error:
        raise UserError(
            f"The Hub at {api.endpoint} cannot be reached ({error}); check the connection, or push "
            "to a local folder such as ./model."
        ) from error
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"The Hub did not take the files of {repo}: {reason}") from error
    return str(url), str(commit.oid)


def _refusal(repo: str, error: Any) -> str:
    status = error.response.status_code if error.response is not None else None
    said = error.server_message or ""
    if status == 401:
        return (
            f"The Hub does not accept the token for {repo} (401); log in again with `hf auth "
            "login`, with a token that may write."
        )
    if status == 403:
        return (
            f"The token may not write to {repo} (403{': ' + said if said else ''}); use a token of "
            "role `write` and a user or organization that it belongs to."
        )
    if status == 404:
        return (
            f"The Hub knows no user or organization for {repo} (404); check the part before the /."
        )
    return f"The Hub refused {repo} ({status}{': ' + said if said else ''}); try again later."
