"""What a spec names, resolved and pinned before anything is started."""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trainables.quickstart.judge
from search_spaces.spec import Spec
from trainables.artifacts import checksum
from trainables.data.sources import source_of
from trainables.hub import snapshot
from trainables.judges import python_file as judge_file

# The files in a local folder that make a tokenizer what it is, and a model.
TOKENIZER_FILES = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template*",
    "*.model",
    "*.tiktoken",
    "config.json",  # names the tokenizer's class where its own files do not
)
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
)
CODE = ("**/*.py",)  # run where the spec trusts it
JUDGE_FILES = (*MODEL_FILES, *TOKENIZER_FILES)
OLD_JUDGE = 2  # format of the answers whose key has fewer files of a judge


@dataclass(frozen=True)
class Inputs:
    """What a spec names, looked up: it exists, and this is its identity.

    Attributes:
        base: the model's folder.
        commit: of the model, where it comes from the Hub.
        source: the data set, as `source_of` identifies it.
        judge: checksum or commit of the judge, or None.
        judge_commit: of the judge, where it comes from the Hub.
    """

    base: Path
    commit: str | None
    source: dict[str, str | None]
    judge: object
    judge_commit: str | None


def look_up(spec: Spec, revisions: Mapping[str, str | None] | None = None) -> Inputs:
    """Find model, data and judge before anything is started.

    Args:
        spec: the resolved search.
        revisions: the commits that an earlier driver of this run used; they override the spec's.

    Raises:
        UserError: one of them is not there, or the Hub does not give it.
    """
    pinned, d = revisions or {}, spec.dataset
    revision = pinned.get("model") or spec.revision
    base, commit = snapshot(spec.model, revision, trust_remote_code=spec.trust_remote_code)
    source = source_of(d.path, d.name, d.split, pinned.get("dataset") or d.revision)
    judge, judge_commit = judge_identity(spec.judge, pinned.get("judge"))
    return Inputs(base, commit, source, judge, judge_commit)


def judge_files(spec: Spec) -> list[Path]:
    """Return the files of a judge that is on this machine, and not on the Hub."""
    local = Path(spec.judge or "").expanduser().absolute()
    if spec.judge is None or not local.exists():
        return []
    return [local] if local.is_file() else files_of(local)


def files_of(folder: Path) -> list[Path]:
    """Return every file of a folder, those of its folders too."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def contents_of(folder: Path, patterns: Iterable[str]) -> dict[str, str]:
    """Return the checksum of every file of a folder that matches, by its path in the folder."""
    paths = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return {path.relative_to(folder).as_posix(): checksum(path) for path in sorted(paths)}


def model_contents(spec: Spec, folder: Path) -> dict[str, str]:
    """Return what tells a model from another: its weights, its settings, its code if it is run."""
    return contents_of(folder, (*MODEL_FILES, *(CODE if spec.trust_remote_code else ())))


def tokenizer_contents(spec: Spec, folder: Path) -> dict[str, str]:
    """Return what tells a tokenizer from another: its files, and its code if it is run."""
    return contents_of(folder, (*TOKENIZER_FILES, *(CODE if spec.trust_remote_code else ())))


def same_judge(inputs: Mapping[str, Any], judge: object) -> bool:
    """Return whether a judge is the one in the inputs of prepared answers.

    Args:
        inputs: what the key of the answers was computed from.
        judge: as `judge_identity` returns it now.
    """
    then = inputs["judge"]
    if isinstance(judge, Mapping) and isinstance(then, Mapping) and inputs["format"] <= OLD_JUDGE:
        return all(judge.get(name) == digest for name, digest in then.items())
    return bool(judge == then)


def judge_identity(judge: str | None, revision: str | None) -> tuple[object, str | None]:
    """Return the judge's identity, checksums or commit, and its commit if it is from the Hub."""
    if judge is None:
        return None, None
    if judge == "quickstart":
        return checksum(Path(inspect.getfile(trainables.quickstart.judge))), None
    local = Path(judge).expanduser()
    if local.is_file():
        judge_file.check(judge)
        return checksum(local), None
    folder, commit = snapshot(judge, revision)
    return commit or contents_of(folder, JUDGE_FILES), commit
