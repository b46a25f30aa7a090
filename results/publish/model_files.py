"""The files of a run that are its model, checked to be complete; nothing else ever leaves."""

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from results.publish.adapter import ADAPTER, merged, portable
from results.publish.public_view import Candidate
from results.run import layout
from results.run.run import Run
from search_spaces.errors import UserError

CARD, CONFIG, SPEC, FIGURE = "README.md", "dpo.yaml", "spec.yaml", "front.png"
WRITTEN = frozenset({CARD, CONFIG, SPEC, FIGURE})  # rather than copied
# The names that `save_pretrained` gives, and no pattern that another file could answer to: a
# checkpoint folder also holds optimizer state and paths of this machine.
TOKENIZERS = frozenset({"tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"})
TEXTS = TOKENIZERS | {
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
}
INDEX = "model.safetensors.index.json"
MODEL = frozenset({"config.json", "generation_config.json", INDEX})
WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
SHARD = re.compile(r"model-\d{5}-of-(\d{5})\.safetensors")


def may_leave(name: str) -> bool:
    """Whether a file of this name is a part of what `push` publishes."""
    return name in TEXTS | MODEL | ADAPTER | WRITTEN or WEIGHTS.fullmatch(name) is not None


@contextmanager
def model_files(run: Run, chosen: Candidate) -> Iterator[dict[str, Path]]:
    """Give the files of a model, for as long as this lasts.

    The winner's are in `best/`, those of the model trained on all pairs in `full/`. Of another
    trial they are its checkpoint's, from object storage a copy; a LoRA adapter is merged into its
    base, unless it is wanted alone.

    Args:
        run: an opened run.
        chosen: the model.

    Yields:
        File name -> path, of the allowed names only.

    Raises:
        UserError: they are gone, damaged, links, or cannot be fetched or merged.
    """
    what = f"Trial {chosen.number} of run {run.name}"
    if chosen.full:
        yield _complete(run, run.folder / layout.FULL, f"{what}, trained on all pairs,", MODEL)
        return
    if chosen.adapter and not run.spec.get("lora"):
        raise UserError(
            f"Run {run.name} trained whole models and has no LoRA adapters. Remove --adapter."
        )
    winner = (run.verdict() or {}).get("winner")
    if chosen.number == winner and run.best is not None and not chosen.adapter:
        yield _complete(run, run.best, what, MODEL)
        return
    with (
        _checkpoint(run, chosen.number) as checkpoint,
        tempfile.TemporaryDirectory(prefix="preftune-push-") as scratch,
    ):
        if not (checkpoint / "adapter_config.json").is_file():
            yield _complete(run, checkpoint, what, ADAPTER if chosen.adapter else MODEL)
            return
        files = _complete(run, checkpoint, what, ADAPTER)
        if chosen.adapter:
            yield files | portable(run, files, Path(scratch))
            return
        merged(run, checkpoint, Path(scratch))
        yield _complete(run, Path(scratch), what, MODEL)


@contextmanager
def _checkpoint(run: Run, trial: int) -> Iterator[Path]:
    """Give the folder of a trial's kept checkpoint; from object storage, a copy.

    Raises:
        UserError: it cannot be fetched.
    """
    place = str(run.trial(trial).attrs.get("checkpoint") or run.trial_folder(trial) / "checkpoint")
    if "://" not in place:
        yield run.folder / place
        return
    from pyarrow import ArrowException, fs

    with tempfile.TemporaryDirectory(prefix="preftune-push-") as folder:
        try:
            files, path = fs.FileSystem.from_uri(place)
            fs.copy_files(path, folder, source_filesystem=files)
        except FileNotFoundError as error:
            raise UserError(
                f"Trial {trial} of run {run.name} cannot be published: {place} is gone. Weights "
                "are kept of the best few trials only."
            ) from error
        except (OSError, ArrowException) as error:
            raise UserError(
                f"The weights of trial {trial} of run {run.name} cannot be fetched from {place} "
                f"({error}); check the endpoint and the credentials in the environment."
            ) from error
        yield Path(folder)


def _complete(run: Run, weights: Path, what: str, parts: frozenset[str]) -> dict[str, Path]:
    """The files of a model or, where `parts` says so, of an adapter; complete and no links."""
    by_name: dict[str, Path] = {}
    for home in (run.reference_tokenizer(), weights):  # the weights' own tokenizer goes first
        if home is not None and home.is_dir():
            by_name |= {
                path.name: path
                for path in home.iterdir()
                if path.is_file()
                and (
                    path.name in TEXTS | parts
                    or (parts is MODEL and WEIGHTS.fullmatch(path.name) is not None)
                )
            }
    has_weights = any(name.endswith(".safetensors") for name in by_name)
    config = "config.json" if parts is MODEL else "adapter_config.json"
    lacking = [] if config in by_name else [config]
    lacking += [] if has_weights else ["*.safetensors"]
    lacking += [] if TOKENIZERS & set(by_name) else ["a tokenizer"]
    if lacking:
        raise UserError(
            f"{what} cannot be published: {weights} has no {' and no '.join(lacking)}. "
            + _way_out(run, weights)
        )
    for path in by_name.values():
        _check_whole(path, what)
    if absent := _shards(by_name) - set(by_name):
        raise UserError(
            f"{what} cannot be published: {weights} has no {min(absent)}, a part of its weights. "
            "Restore it from a copy, or name another trial with --trial."
        )
    return by_name


def _way_out(run: Run, weights: Path) -> str:
    if weights == run.folder / layout.FULL:
        return f"Remove {layout.FULL_VERDICT} there and train it again with `preftune train`."
    return "Weights are kept of the best few trials only."


def _shards(by_name: Mapping[str, Path]) -> set[str]:
    """Names of the files that the weights are in, as their index and their own names say."""
    named: set[str] = set()
    for name in by_name:
        if part := SHARD.fullmatch(name):
            named |= {f"model-{n:05}-of-{part[1]}.safetensors" for n in range(1, int(part[1]) + 1)}
            named.add(INDEX)
    if INDEX in by_name:
        index = json.loads(by_name[INDEX].read_text(encoding="utf-8"))
        files = index.get("weight_map") if isinstance(index, dict) else None
        named |= {str(file) for file in files.values()} if isinstance(files, dict) else set()
    return named


def _check_whole(path: Path, what: str) -> None:
    """Refuse a damaged file before anybody downloads it, and a link.

    Raises:
        UserError: a link, weights shorter than they say they are, or JSON that is not valid.
    """
    from safetensors import SafetensorError, safe_open

    if path.is_symlink():
        raise UserError(
            f"{what} cannot be published: {path} is a link to {path.readlink()}, and what is "
            "behind a link may be anything; put the file itself there."
        )
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
