"""Publish a run's model: one commit on the Hugging Face Hub, or a plain copy in a local folder."""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from results.publish.card import published_texts
from results.publish.hub_names import check_endpoint, tag_of, token_here
from results.publish.licence import completed, recorded
from results.publish.model_files import CONFIG, FIGURE, may_leave, model_files
from results.publish.public_view import Candidate, candidate
from results.publish.target import Target
from results.publish.upload import Upload, Uploaded, upload
from results.report.page import front_png
from results.run import layout
from results.run.run import Run
from results.verdict_view import full_sentence, verdict_sentence
from search_spaces.errors import UserError


@dataclass(frozen=True)
class Access:
    """How the Hub is reached.

    Attributes:
        token: to write with; default: the one of `hf auth login` or HF_TOKEN.
        endpoint: the Hub's address; default: huggingface_hub's.
    """

    token: str | None = None
    endpoint: str | None = None


@dataclass(frozen=True)
class PushResult:
    """What was published, or would be."""

    what: str  # `trial 7`
    where: str  # an address or a folder
    files: dict[str, int]  # name -> bytes
    uploaded: Uploaded | None  # None for a folder and for a dry run
    dry_run: bool


def push(
    run: Run,
    target: Target,
    chosen: Candidate | None = None,
    *,
    dry_run: bool = False,
    force: bool = False,
    access: Access | None = None,
) -> PushResult:
    """Publish a model of a run.

    Args:
        run: an opened run.
        target: a repository or a folder.
        chosen: the model, from `selected`; default: the winner's.
        dry_run: only list what would leave; needs neither the network nor a token.
        force: publish without a passing verdict; the card then says so.
        access: how the Hub is reached.

    Raises:
        UserError: nothing to publish, its verdict does not pass, or the Hub refused.
    """
    chosen, access = chosen or candidate(run), access or Access()
    if not chosen.passing and not force:
        why = full_sentence(chosen.full) if chosen.full else verdict_sentence(run)
        raise UserError(
            f"{_title(chosen).capitalize()} of run {run.name} has no passing verdict, so it is not "
            f"published: {why} Give --force to publish it all the same."
        )
    target.check(run)
    folder, repo = target.folder, target.repo
    licence, token = recorded(run), None
    if repo is not None and not dry_run:
        check_endpoint(access.endpoint)
        token = token_here(access.token)
        licence = completed(licence, run, token, access.endpoint)
    with model_files(run, chosen) as sources:
        figure = front_png(run)
        texts = published_texts(run, chosen, target, licence, figure is not None)
        contents: dict[str, Path | bytes] = {**sources}
        contents |= {FIGURE: figure} if figure is not None else {}
        contents |= {name: text.encode() for name, text in texts.items()}
        contents = dict(sorted(contents.items()))
        files = sizes(contents)
        if dry_run or token is None or repo is None:
            if folder is not None and not dry_run:
                _copy(contents, folder)
            return PushResult(_title(chosen), str(folder or repo), files, None, dry_run)
        refuse_token(contents, token)
        wanted = Upload(
            repo=repo,
            kind="model",
            contents=contents,
            ours=may_leave,
            mark=CONFIG,
            tag=tag_of(run.name, *_tag_parts(run, chosen)),
            message=f"Publish {_title(chosen)} of preftune run {run.name}",
            private=target.private,
            revision=target.revision,
        )
        done = upload(wanted, token, access.endpoint)
        return PushResult(_title(chosen), done.url, files, done, False)


def selected(run: Run, trial: int | None, full: bool, adapter: bool) -> Candidate:
    """Return the model that the options of `preftune push` name.

    Args:
        run: an opened run.
        trial: a trial other than the winner.
        full: the winner's configuration trained on all pairs by `preftune train`.
        adapter: the LoRA adapter alone, without its base.

    Raises:
        UserError: there is no such model, or the options exclude each other.
    """
    if not full:
        return candidate(run, trial, adapter=adapter)
    if trial is not None:
        raise UserError(
            f"--full is the winner trained on all pairs, and --trial {trial} is a model of the "
            "search. Remove one of the two."
        )
    if adapter:
        raise UserError(
            "--adapter cannot be combined with --full: `preftune train` keeps only the merged "
            "model. Remove --adapter."
        )
    trained = run.full()
    if trained is None:
        before = " for its present winner" if (run.folder / layout.FULL_VERDICT).is_file() else ""
        raise UserError(
            f"Run {run.name} has no model trained on all pairs{before}. Train it with `preftune "
            f"train {run.name}`."
        )
    return candidate(run, full=trained)


def _title(chosen: Candidate) -> str:
    return f"trial {chosen.number}{', trained on all pairs,' if chosen.full else ''}"


def _tag_parts(run: Run, chosen: Candidate) -> list[str]:
    """What tells the model's tag from that of the winner."""
    if chosen.full:
        return ["full"]
    winner = (run.verdict() or {}).get("winner")
    other = [f"trial-{chosen.number}"] if chosen.number != winner else []
    return [*other, *(["adapter"] if chosen.adapter else [])]


def sizes(contents: Mapping[str, Path | bytes]) -> dict[str, int]:
    """The bytes of each file, by name."""
    return {
        name: len(content) if isinstance(content, bytes) else content.stat().st_size
        for name, content in contents.items()
    }


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
