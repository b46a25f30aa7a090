"""Publish a run's model: one commit on the Hugging Face Hub, or a plain copy in a local folder."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from results.formatting import verdict_sentence
from results.publish.card import published_texts
from results.publish.hub_names import check_branch, check_endpoint, check_name, tag_of, token_here
from results.publish.licence import completed, recorded
from results.publish.model_files import CONFIG, FIGURE, may_leave, model_files
from results.publish.public_view import candidate
from results.publish.upload import Upload, Uploaded, upload
from results.report.page import front_png
from results.run.run import Run
from search_spaces.errors import UserError


@dataclass(frozen=True)
class PushResult:
    """What was published, or would be."""

    where: str  # an address or a folder
    files: dict[str, int]  # name -> bytes
    uploaded: Uploaded | None  # None for a folder and for a dry run
    dry_run: bool
    trial: int | None  # None for a data set


def push(
    run: Run,
    repo_or_folder: str,
    *,
    private: bool = False,
    revision: str | None = None,
    dry_run: bool = False,
    force: bool = False,
    trial: int | None = None,
    adapter: bool = False,
    token: str | None = None,
    endpoint: str | None = None,
) -> PushResult:
    """Publish the winner of a run, or a trial that kept its weights.

    Args:
        run: an opened run.
        repo_or_folder: `name/repo` on the Hub; or a folder: `./x`, `../x`, `/x`, `~/x` or one
            that exists.
        private: make the repository private; refused where it exists and is public.
        revision: a branch of the repository, which is created if it is missing.
        dry_run: only tell what would leave; needs neither the network nor a token.
        force: publish without a passing verdict; the card then says so.
        trial: a trial other than the winner.
        adapter: publish the LoRA adapter alone, without its base.
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
    if folder:
        _refuse_of_no_use(repo_or_folder, private, revision)
        target = Path(repo_or_folder).expanduser().resolve()
        _check_folder(target, run)
    else:
        check_name(repo_or_folder)
        if revision is not None:
            check_branch(revision)
    licence = recorded(run)
    if not folder and not dry_run:
        check_endpoint(endpoint)
        token = token_here(token)
        licence = completed(licence, run, token, endpoint)
    with model_files(run, chosen.number, adapter=adapter) as sources:
        figure = front_png(run)
        texts = published_texts(
            run,
            trial,
            None if folder else repo_or_folder,
            revision=revision,
            adapter=adapter,
            licence=licence,
            figure=figure is not None,
        )
        contents: dict[str, Path | bytes] = {**sources}
        contents |= {FIGURE: figure} if figure is not None else {}
        contents |= {name: text.encode() for name, text in texts.items()}
        contents = dict(sorted(contents.items()))
        files = sizes(contents)
        if dry_run:
            where = str(target) if folder else repo_or_folder
            return PushResult(where, files, None, True, chosen.number)
        if folder:
            _copy(contents, target)
            return PushResult(str(target), files, None, False, chosen.number)
        assert token is not None
        refuse_token(contents, token)
        parts = [f"trial-{chosen.number}"] if trial is not None and not _wins(run, trial) else []
        parts += ["adapter"] if adapter else []
        done = upload(
            Upload(
                repo=repo_or_folder,
                kind="model",
                contents=contents,
                ours=may_leave,
                mark=CONFIG,
                tag=tag_of(run.name, *parts),
                message=f"Publish trial {chosen.number} of preftune run {run.name}",
                private=private,
                revision=revision,
            ),
            token,
            endpoint,
        )
        return PushResult(done.url, files, done, False, chosen.number)


def is_folder(repo_or_folder: str) -> bool:
    """Whether a target of `push` is a local folder rather than a repository."""
    path = repo_or_folder.replace(os.sep, "/")
    return (
        path in (".", "..", "~")
        or path.startswith(("./", "../", "/", "~/"))
        or (path != "" and os.path.isdir(repo_or_folder))
    )


def sizes(contents: Mapping[str, Path | bytes]) -> dict[str, int]:
    """The bytes of each file, by name."""
    return {
        name: len(content) if isinstance(content, bytes) else content.stat().st_size
        for name, content in contents.items()
    }


def _wins(run: Run, trial: int) -> bool:
    return trial == (run.verdict() or {}).get("winner")


def _refuse_of_no_use(folder: str, private: bool, revision: str | None) -> None:
    for option, given in (("--private", private), ("--revision", revision)):
        if given:
            raise UserError(
                f"{option} is of no use with the local folder {folder}: leave it out, or name a "
                "repository as `name/repo`."
            )


def refuse_token(contents: Mapping[str, Path | bytes], token: str) -> None:
    """Refuse to publish the very token that is written with, wherever it got into a text.

    Raises:
        UserError: with the file's name.
    """
    for name, content in contents.items():
        if not name.endswith((".safetensors", ".png")):
            text = content if isinstance(content, bytes) else content.read_bytes()
            if token.encode() in text:
                raise UserError(
                    f"{name} holds the Hugging Face token of this machine and is not published: "
                    "remove it there, and change the token if others could read it."
                )


def _check_folder(target: Path, run: Run) -> None:
    if target.is_relative_to(run.folder):
        raise UserError(f"{target} is a part of run {run.name} itself; name another folder.")
    if not os.path.lexists(target):
        above = next(folder for folder in target.parents if os.path.lexists(folder))
        if not above.is_dir():
            raise UserError(
                f"{target} cannot be written ({above} is a file); name a folder that can."
            )
        return
    if not target.is_dir():
        raise UserError(f"{target} is a file; name a folder to publish into.")
    try:
        names = os.listdir(target)
    except OSError as error:
        raise UserError(
            f"{target} cannot be read ({error.strerror}); name a folder that can."
        ) from error
    foreign = [name for name in names if not may_leave(name)]
    if names and (foreign or CONFIG not in names):
        raise UserError(
            f"{target} is not empty and not an earlier push (it holds {min(foreign or names)}); "
            "name a new or an empty folder."
        )


def _copy(contents: Mapping[str, Path | bytes], target: Path) -> None:
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
        for name, content in contents.items():
            if isinstance(content, bytes):
                (new / name).write_bytes(content)
            else:
                shutil.copyfile(content, new / name)
        if target.exists():
            target.rename(old)
        new.rename(target)
    except OSError as error:
        raise UserError(f"{target} could not be written ({error.strerror}).") from error
    finally:
        if old.exists() and not target.exists():  # interrupted between the two
            old.rename(target)
        shutil.rmtree(staged, ignore_errors=True)
