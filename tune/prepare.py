"""Stage 1, on Ray:

data, the SFT pass, the reference's log-probs and answers; once for all searches alike.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray

from results.publish.licence import of_repository
from results.run import layout
from search_spaces.errors import UserError
from search_spaces.spec import Spec
from trainables.artifacts import META, build_once, checksum, damage, write_bytes
from trainables.data.chat_template import OURS
from trainables.prepared import Prepared, Split
from tune.cluster.connection import Cluster
from tune.cluster.shipping import build_on_worker, ship
from tune.inputs import (
    MODEL_FILES,
    TOKENIZER_FILES,
    Inputs,
    contents_of,
    files_of,
    judge_files,
    judge_identity,
)
from tune.record import Record, read_lines

SPLITS = ("train", "validation", "test")
ANSWERS = 2  # counts up when what is kept of an answer changes: older ones are sampled again


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

    A run goes on with the very data, reference and answers that it began with, whatever the Hub or
    a file holds by now.

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
    if judge != meta["inputs"]["judge"]:
        raise UserError(
            f"the judge {spec.judge!r} is not the one that run {record.folder.name} began with, "
            "and two judges' scores cannot be compared: put it back, or start a new run"
        )
    return _preparation(model, folders["data"], folders["reference"], folders["answers"], commit)


def _preparation(
    model: Path, data: Path, reference: Path, answers: Path, judge_revision: str | None
) -> Preparation:
    def split(name: str) -> Split:
        told = None if name == "train" else answers / f"{name}.jsonl"
        return Split(data / f"{name}.parquet", reference / f"{name}.npz", told)

    search = Prepared(
        model, data / "tokenizer", split("train"), split("validation"), judge_revision
    )
    return Preparation(search, split("test"))


def prepare(
    spec: Spec, inputs: Inputs, record: Record, cluster: Cluster, say: Callable[[str], None]
) -> Preparation:
    """Prepare a search, or find it prepared.

    Args:
        spec: the resolved search.
        inputs: what `look_up` found.
        record: its run folder, which gets the data report and the keys.
        cluster: where to compute.
        say: is told each step as it begins, in a few words.

    Raises:
        UserError: the model, the data or the judge cannot be used, or they are others than those
            that the run began with.
    """
    prepared = record.folder.absolute().parent / layout.PREPARED
    gpus = 1.0 if cluster.gpus and spec.resources.gpu != 0 else 0.0
    base, d = inputs.base, spec.dataset
    revisions = {"model": inputs.commit, "dataset": inputs.source["revision"]}
    record.update(revisions={**revisions, "judge": inputs.judge_commit})

    say("preparing the pairs")
    max_length = spec.configuration({}).dpo.get("max_length", 1024)
    data_inputs = {
        "source": inputs.source,
        "split": {"test": d.test_fraction, "validation": d.validation_pairs, "seed": d.seed},
        "tokenizer": contents_of(base, TOKENIZER_FILES),
        "template": checksum(OURS),
        "max_length": max_length,
    }
    # The commit that the key was made from, not the branch: it may move in between.
    commit = inputs.source["revision"]

    def build_data(out: Path) -> None:
        def build(folder: Path) -> None:
            from trainables.data.preferences import prepare_pairs
            from trainables.data.sources import load_rows
            from trainables.models import check_fits, load_model, load_tokenizer

            remote = spec.trust_remote_code
            model = load_model(base, trust_remote_code=remote)
            tokenizer = load_tokenizer(base, trust_remote_code=remote)
            check_fits(model, tokenizer, max_length, spec.model)
            prepare_pairs(
                load_rows(d.path, d.name, d.split, commit),
                tokenizer,
                max_length=max_length,
                test_fraction=d.test_fraction,
                validation_pairs=d.validation_pairs,
                seed=d.seed,
                out=folder,
                source=inputs.source,
            )

        # On the driver's node, which has the user's files; it may be a head without CPUs to give.
        build_on_worker(cluster, 0.0, build, out, cpus=0)

    data = build_once(prepared, "data", data_inputs, build_data)
    write_bytes(record.folder / layout.DATA_REPORT, (data / layout.DATA_REPORT).read_bytes())

    model, sft = base, None
    # `precision: auto` is another dtype on a GPU than on the CPU.
    numbers = {"precision": spec.precision, "device": "gpu" if gpus else "cpu"}
    identity: dict[str, Any] = {"model": contents_of(base, MODEL_FILES), **numbers}
    if spec.sft is not None:
        say("training the reference (SFT)")
        sft_inputs = identity | {
            "data": data.name,
            "sft": spec.sft.model_dump(),
            "seed": spec.search.seed,
        }
        sft = build_once(prepared, "sft", sft_inputs, _build_sft(spec, cluster, gpus, base, data))
        model = sft / "model"
        identity = {"model": sft.name, **numbers}

    say("scoring the pairs under the reference")
    reference = build_once(
        prepared,
        "reference",
        identity | {"data": data.name, "lora": spec.lora is not None},
        _build_logps(spec, cluster, gpus, model, data),
    )
    say("sampling the reference's answers")
    answer_inputs = identity | {
        "format": ANSWERS,
        "data": data.name,
        "judge": inputs.judge,
        "evaluation": spec.evaluation.model_dump(),
        "verify_prompts": spec.verify.prompts,
        "seed": spec.search.seed,
    }
    build_answers = _build_answers(spec, cluster, gpus, model, data, inputs.judge_commit)
    answers = build_once(prepared, "answers", answer_inputs, build_answers)
    measures = reference_measures(read_lines(answers / "validation.jsonl"))
    for name, value in measures.items():
        bound = spec.objective.constraints.get(name)
        if bound is not None and value is not None and not bound.holds(value):
            say(
                f"the reference itself breaks the limit on {name} ({value:.3g}): most trials will "
                f"be infeasible, unless sft, or another objective.constraints.{name}, mends it"
            )
    names = {
        "data": data.name,
        "sft": sft.name if sft else None,
        "reference": reference.name,
        "answers": answers.name,
    }
    if record.info.get("prepared") not in (None, names):
        raise UserError(
            f"model, data or judge of run {record.folder.name} have changed since it began, and "
            "what was prepared then is gone: put them back, or start a new run"
        )
    record.update(
        reference={"validation": measures},
        model={"path": spec.model, "revision": inputs.commit, "folder": str(model)}
        | _licence("model", spec.model, inputs.commit),
        dataset=_licence("dataset", d.path, commit),
        prepared=names,
    )
    return _preparation(model, data, reference, answers, inputs.judge_commit)


def _licence(kind: Literal["model", "dataset"], path: str, commit: str | None) -> dict[str, str]:
    """Note down a Hub repository's licence for the model card, as it is when it is used."""
    return of_repository(kind, path, commit) if commit is not None else {}


def reference_measures(lines: Iterable[Mapping[str, Any]]) -> dict[str, float | None]:
    """Return the reference's line of the leaderboard:

    what its answers say, and what holds by definition.
    """
    lines = list(lines)
    scores = [line["score"] for line in lines if line["score"] is not None]
    return {
        "win_rate": 0.5 if scores else None,
        "judge_score": float(np.mean(scores)) if scores else None,
        "kl": 0.0,
        "pair_loss": math.log(2),
        "accuracy": 0.5,
        "margin": 0.0,
        "chosen_drift": 0.0,
        "length_ratio": 1.0,
        "repetition": float(np.mean([line["repetition"] for line in lines])),
        "ended": float(np.mean([line["ended"] for line in lines])),
    }


def _build_sft(
    spec: Spec, cluster: Cluster, gpus: float, base: Path, data: Path
) -> Callable[[Path], None]:
    assert spec.sft is not None
    sft = spec.sft

    def build_all(out: Path) -> None:
        files = [*files_of(base), *files_of(data / "tokenizer")]
        files += [data / "train.parquet", data / "validation.parquet"]
        sent = ship(cluster, files)

        def build(folder: Path) -> None:
            from trainables.sft import run_sft

            run_sft(
                sent.here(base),
                None,
                sent.here(data),
                folder,
                epochs=sft.epochs,
                learning_rate=sft.learning_rate,
                seed=spec.search.seed,
                precision=spec.precision,
                trust_remote_code=spec.trust_remote_code,
            )

        # A CPU run takes the whole machine: nothing else runs before the reference exists.
        build_on_worker(cluster, gpus, build, out, cpus=1 if gpus else cluster.most_cpus)

    return build_all


def _build_logps(
    spec: Spec, cluster: Cluster, gpus: float, model: Path, data: Path
) -> Callable[[Path], None]:
    """Score every pair, a shard for each device at once."""
    shards = max(1, int(cluster.gpus if gpus else cluster.cpus))

    def build_all(out: Path) -> None:
        from trainables.reference import save_logps

        pairs = [data / f"{name}.parquet" for name in SPLITS]
        sent = ship(cluster, [*files_of(model), *files_of(data / "tokenizer"), *pairs])

        @ray.remote(num_cpus=1, num_gpus=gpus, max_retries=2)
        def score(shard: int) -> dict[str, np.ndarray]:
            import torch

            from trainables.devices import device_and_dtype, weights_dtype
            from trainables.models import load_model, load_tokenizer
            from trainables.reference import logps_of_pairs, read_pairs

            device, autocast = device_and_dtype(spec.precision)
            if device.type == "cpu":
                torch.set_num_threads(1)
            policy = load_model(
                sent.here(model),
                dtype=weights_dtype(spec.lora is not None, autocast),
                trust_remote_code=spec.trust_remote_code,
            )
            tokenizer = load_tokenizer(
                sent.here(data / "tokenizer"), trust_remote_code=spec.trust_remote_code
            )
            scored = {}
            for path in pairs:
                table = read_pairs(sent.here(path))
                rows = np.arange(table.num_rows) % shards == shard
                chosen, rejected = logps_of_pairs(
                    policy.to(device),
                    table.filter(rows),
                    batch_size=64,
                    pad_token_id=tokenizer.pad_token_id or 0,
                    autocast=autocast,
                )
                scored[path.stem] = np.stack([chosen, rejected])
            return scored

        parts = ray.get([score.remote(shard) for shard in range(shards)])
        for name in SPLITS:
            both = np.empty((2, sum(part[name].shape[1] for part in parts)), np.float32)
            for shard, part in enumerate(parts):
                both[:, shard::shards] = part[name]
            if not np.isfinite(both).all():
                raise UserError(
                    f"the reference {spec.model!r} gives pairs of {name} a log-prob that is not a "
                    "number: the model is damaged, or precision: fp32 is called for"
                )
            save_logps(out / f"{name}.npz", *both)

    return build_all


def _build_answers(
    spec: Spec,
    cluster: Cluster,
    gpus: float,
    model: Path,
    data: Path,
    judge_revision: str | None,
) -> Callable[[Path], None]:
    def build_all(out: Path) -> None:
        held_out = [data / "validation.parquet", data / "test.parquet"]
        files = [*files_of(model), *files_of(data / "tokenizer"), *held_out, *judge_files(spec)]
        sent = ship(cluster, files)

        def build(folder: Path) -> None:
            from trainables.devices import device_and_dtype
            from trainables.evaluation.sampling import EVALUATION_BATCH
            from trainables.judges.load import load_judge
            from trainables.reference import reference_answers

            device, _ = device_and_dtype(spec.precision)
            judge = None
            if spec.judge is not None:
                judge = load_judge(sent.named(spec.judge), device, judge_revision)
            reference_answers(
                sent.here(model),
                sent.here(data),
                folder,
                judge,
                validation_prompts=spec.evaluation.prompts,
                test_prompts=spec.verify.prompts,
                max_new_tokens=spec.evaluation.max_new_tokens,
                seed=spec.search.seed,
                batch_size=EVALUATION_BATCH,
                precision=spec.precision,
                trust_remote_code=spec.trust_remote_code,
            )

        build_on_worker(cluster, gpus, build, out)

    return build_all
