"""Stage 1 prepares data, SFT pass, reference log-probs and answers, once for all equal searches."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from results.publish.licence import of_repository
from results.run import layout
from search_spaces.errors import UserError
from search_spaces.spec import Spec
from trainables.artifacts import META, build_once, checksum, damage, write_bytes
from trainables.data.chat_template import OURS
from trainables.evaluation.metrics import reference_measures
from trainables.prepared import Prepared, Split
from tune.cluster.connection import Cluster
from tune.cluster.shipping import Shipment, build_on_worker
from tune.inputs import (
    Inputs,
    files_of,
    judge_files,
    judge_identity,
    model_contents,
    same_judge,
    tokenizer_contents,
)
from tune.record import Record, read_lines
from tune.reference_logps import Reference, Stage, prepare_logps
from tune.worker import ANSWERING, build_answers, build_checks, build_data, build_sft, max_length

# Each counts up when what its stage computes or keeps changes: a new run then makes its own folder.
# A run that began with an older folder keeps it.
DATA = 2  # 1: dialogues as text, tools and other columns for prompts were not read
CHECKED = 1
SFT = 1  # 0: the key lacked generation_config.json and remote code
ANSWERS = 3  # counts up when what is kept of an answer changes: older ones are sampled again


@dataclass(frozen=True)
class Preparation:
    """What preparation hands on: the search gets `search`, verification alone gets `test`."""

    search: Prepared
    test: Split

    def files(self) -> list[Path]:
        """Return every file, for sending to the nodes that will need one or another."""
        held_out = [self.test.pairs, self.test.logps, self.test.answers]
        return [*self.search.files(), *(path for path in held_out if path)]


def recorded(spec: Spec, record: Record) -> Preparation | None:
    """Return what an earlier driver of this run prepared, if it is there and undamaged.

    A run keeps the data, reference and answers that it began with, whatever the Hub or a file holds
    by now.

    Raises:
        UserError: the judge is not there, or is another than the one that the run began with.
    """
    names = record.info.get("prepared")
    if not names:
        return None
    root = record.folder.absolute().parent / layout.PREPARED
    folders = {stage: root / name for stage, name in names.items() if name}
    if any(damage(folder) is not None for folder in folders.values()):
        return None
    sft = folders.get("sft")
    base = (record.info.get("model") or {}).get("folder")
    model = sft / "model" if sft else Path(base or "")
    if not {"data", "reference", "answers"} <= folders.keys() or not (sft or base):
        return None  # run.json has been written anew, without them
    if not model.is_dir():
        return None
    meta = json.loads((folders["answers"] / META).read_text(encoding="utf-8"))
    pinned = record.info.get("revisions") or {}
    judge, commit = judge_identity(spec.judge, pinned.get("judge"))
    if not same_judge(meta["inputs"], judge):
        raise UserError(
            f"the judge {spec.judge!r} is not the one that run {record.folder.name} began with, "
            "and two judges' scores cannot be compared: put it back, or start a new run"
        )
    return _preparation(model, folders["data"], folders["reference"], folders["answers"], commit)


def _preparation(
    model: Path, data: Path, reference: Path, answers: Path, judge_revision: str | None
) -> Preparation:
    def split(name: str) -> Split:
        sampled = None if name == "train" else answers / f"{name}.jsonl"
        return Split(data / f"{name}.parquet", reference / f"{name}.npz", sampled)

    search = Prepared(
        model, data / "tokenizer", split("train"), split("validation"), judge_revision
    )
    return Preparation(search, split("test"))


def prepare(
    spec: Spec,
    inputs: Inputs,
    record: Record,
    cluster: Cluster,
    sent: Shipment,
    say: Callable[[str], None],
) -> Preparation:
    """Prepare a search, or find it prepared.

    Args:
        spec: the resolved search.
        inputs: what `look_up` returned.
        record: its run folder, which gets the data report and the keys.
        cluster: where to compute.
        sent: the run's shipment, to which the files are added that tasks on other nodes need.
        say: is called with each step, in a few words, as it begins.

    Raises:
        UserError: the model, the data or the judge cannot be used, or they are not those that the
            run began with.
    """
    root = record.folder.absolute().parent / layout.PREPARED
    stage = Stage(spec, root, cluster, sent, say)
    commit = inputs.source["revision"]
    record.update(
        revisions={"model": inputs.commit, "dataset": commit, "judge": inputs.judge_commit}
    )
    data = prepare_data(stage, inputs)  # it loads the model, and refuses one that is not whole
    check_model(stage, inputs)
    report = (data / layout.DATA_REPORT).read_bytes()
    write_bytes(record.folder / layout.DATA_REPORT, report)
    say(pairs_sentence(json.loads(report)))
    sft = prepare_sft(stage, inputs.base, data) if spec.sft is not None else None
    # `precision: auto` is another dtype on a GPU than on the CPU.
    numbers = {"precision": spec.precision, "device": "gpu" if stage.gpus else "cpu"}
    model = model_contents(spec, inputs.base) if sft is None else sft.name
    reference = Reference(
        inputs.base if sft is None else sft / "model", {"model": model, **numbers}
    )
    logps = prepare_logps(stage, data, reference)
    answers = prepare_answers(stage, inputs, data, reference)
    names = {
        "data": data.name,
        "sft": sft.name if sft else None,
        "reference": logps.name,
        "answers": answers.name,
    }
    if record.info.get("prepared") not in (None, names):
        raise UserError(
            f"the model, the data or the judge of run {record.folder.name} has changed since it "
            "began, and what was prepared then is gone: put them back, or start a new run"
        )
    measures = reference_measures(read_lines(answers / "validation.jsonl"))
    _warn_of_limits(spec, measures, say)
    record.update(
        reference={"validation": measures},
        model={"path": spec.model, "revision": inputs.commit, "folder": str(reference.model)}
        | _licence("model", spec.model, inputs.commit),
        dataset=_licence("dataset", spec.dataset.path, commit),
        prepared=names,
    )
    return _preparation(reference.model, data, logps, answers, inputs.judge_commit)


def check_model(stage: Stage, inputs: Inputs) -> None:
    """Check that the search can train the model and save it, once for each such search.

    Raises:
        UserError: an adapter does not fit, or checkpoints could not be saved.
    """
    spec = stage.spec
    adapters = {name: d.model_dump() for name, d in spec.space.items() if name.startswith("lora.")}
    key = {
        "format": CHECKED,
        "model": model_contents(spec, inputs.base),
        "tokenizer": tokenizer_contents(spec, inputs.base),
        "kwargs": spec.dataset.chat_template_kwargs,
        "lora": spec.lora,
        "space": adapters,
    }

    def build(out: Path) -> None:
        build_on_worker(stage.cluster, build_checks, out, spec, inputs, cpus=0)

    build_once(stage.root, "checked", key, build)


def prepare_data(stage: Stage, inputs: Inputs) -> Path:
    """Return the folder of clean, split and tokenised pairs."""
    stage.say("preparing the pairs")
    d = stage.spec.dataset
    key = {
        "format": DATA,
        "source": inputs.source,
        "split": {"test": d.test_fraction, "validation": d.validation_pairs, "seed": d.seed},
        "tokenizer": tokenizer_contents(stage.spec, inputs.base),
        "template": checksum(OURS),
        "max_length": max_length(stage.spec),
        "reading": {"columns": d.columns, "text": d.text, "kwargs": d.chat_template_kwargs},
    }

    def build(out: Path) -> None:
        # On the driver's node, which has the user's files; it may be a head without CPUs to give.
        build_on_worker(stage.cluster, build_data, out, stage.spec, inputs, cpus=0)

    return build_once(stage.root, "data", key, build)


def pairs_sentence(report: Mapping[str, Any]) -> str:
    """Return how many pairs a data report counts, and what was dropped or cut and why."""
    splits = report["splits"]
    usable = sum(split["kept"] for split in splits.values())
    dropped = {
        reason: sum(split["dropped"].get(reason, 0) for split in splits.values())
        for reason in report["reasons"]
    }
    parts = [f"{usable:,} of {sum(split['raw'] for split in splits.values()):,} pairs can be used"]
    examples = report["examples"]
    parts += [
        f"{n:,} dropped: {report['reasons'][why]} (row {examples[why]})"
        for why, n in dropped.items()
        if n
    ]
    for key, what in report["readings"].items():
        if n := sum(split["read_as"].get(key, 0) for split in splits.values()):
            parts.append(f"{n:,} read as: {what} (row {examples[key]})")
    columns = {part: column for part, column in report["columns"].items() if column != part}
    for part, column in columns.items():
        parts.append(f"{part} from {column if isinstance(column, str) else ' and '.join(column)}")
    if report["unread"]:
        parts.append(f"columns not read: {', '.join(report['unread'])}")
    cut = sum((split["truncated"] or 0.0) * split["kept"] for split in splits.values()) / usable
    if cut:
        parts.append(
            f"{cut:.2%} of them have an answer cut to training.max_length {report['max_length']:,}"
        )
    return "; ".join(parts)


def prepare_sft(stage: Stage, base: Path, data: Path) -> Path:
    """Return the folder of the supervised pass, whose model is the reference."""
    spec = stage.spec
    assert spec.sft is not None
    stage.say("training the reference (SFT)")
    key = {
        "format": SFT,
        "model": model_contents(spec, base),
        "precision": spec.precision,
        "device": "gpu" if stage.gpus else "cpu",
        "data": data.name,
        "sft": spec.sft.model_dump(),
        "seed": spec.search.seed,
    }
    # A CPU run takes the whole machine: nothing else runs before the reference exists.
    cpus = 1 if stage.gpus else stage.cluster.most_cpus

    def build(out: Path) -> None:
        files = [*files_of(base), *files_of(data / "tokenizer")]
        files += [data / "train.parquet", data / "validation.parquet"]
        arguments = (spec, stage.sent.add(files), base, data)
        build_on_worker(stage.cluster, build_sft, out, *arguments, gpus=stage.gpus, cpus=cpus)
        stage.sent.release(files_of(base))  # from here on, the pass's model is the reference

    return build_once(stage.root, "sft", key, build)


def prepare_answers(stage: Stage, inputs: Inputs, data: Path, reference: Reference) -> Path:
    """Return the folder of the reference's own answers, sampled and judged."""
    spec, model = stage.spec, reference.model
    stage.say("sampling the reference's answers")
    key = {
        **reference.identity,
        "format": ANSWERS,
        "data": data.name,
        "judge": inputs.judge,
        "evaluation": spec.evaluation.model_dump(),
        "verify_prompts": spec.verify.prompts,
        "seed": spec.search.seed,
    }

    def build(out: Path) -> None:
        held_out = [data / "validation.parquet", data / "test.parquet"]
        files = [*files_of(model), *files_of(data / "tokenizer"), *held_out, *judge_files(spec)]
        arguments = (spec, stage.sent.add(files), model, data, inputs.judge_commit)
        watched = (ANSWERING, spec.search.stuck_minutes)  # a judge may hang
        build_on_worker(
            stage.cluster, build_answers, out, *arguments, gpus=stage.gpus, watched=watched
        )

    return build_once(stage.root, "answers", key, build)


def _warn_of_limits(
    spec: Spec, measures: Mapping[str, float | None], say: Callable[[str], None]
) -> None:
    """Name each limit of the objective that the reference itself does not keep."""
    for name, value in measures.items():
        bound = spec.objective.constraints.get(name)
        if bound is not None and value is not None and not bound.holds(value):
            say(
                f"the reference itself breaks the limit on {name} ({value:.3g}): most trials will "
                f"be infeasible, unless sft, or another objective.constraints.{name}, changes that"
            )


def _licence(kind: Literal["model", "dataset"], path: str, commit: str | None) -> dict[str, str]:
    """Note down a Hub repository's licence for the model card, as it is when it is used."""
    return of_repository(kind, path, commit) if commit is not None else {}
