"""The reference's log-probs of the pairs that are trained or measured on, scored on all devices."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import ray

from search_spaces.errors import UserError
from search_spaces.spec import Spec
from trainables.artifacts import META, build_once
from trainables.prepared import Prepared
from trainables.reference_files import load_logps, save_logps
from tune.cluster.connection import Cluster
from tune.cluster.shipping import Shipment
from tune.inputs import files_of
from tune.scored_rows import most_pairs, test_rows, training_rows
from tune.verdict import fresh_seeds
from tune.worker import score_pairs

SPLITS = ("train", "validation", "test")
ALL = "all"  # rows of a split, in the key
# Counts up when what is computed or kept changes: a new run then makes its own folder.
LOGPS = 2  # 1: the rows that are needed; 2: by the head that the policy has


@dataclass(frozen=True)
class Stage:
    """What each step of the preparation is given.

    Attributes:
        spec: the resolved search.
        root: the folder of all prepared folders.
        cluster: where to compute.
        sent: the run's shipment, to which each step adds the files that its tasks need.
        say: is called with each step, in a few words, as it begins.
    """

    spec: Spec
    root: Path
    cluster: Cluster
    sent: Shipment
    say: Callable[[str], None]

    @property
    def gpus(self) -> float:
        """GPUs of one task."""
        return 1.0 if self.cluster.gpus and self.spec.resources.gpu != 0 else 0.0


@dataclass(frozen=True)
class Reference:
    """The model that every trial starts from, and what the keys of its numbers hold of it."""

    model: Path
    identity: Mapping[str, object]


def prepare_logps(stage: Stage, data: Path, reference: Reference) -> Path:
    """Return the folder of the reference's log-probs of every pair that is trained or measured on.

    These are the validation pairs, the first training pairs with the search's own seed and with
    the fresh ones of verification, and `verify.pairs` test pairs.
    """
    spec = stage.spec
    paths = {split: data / f"{split}.parquet" for split in SPLITS}
    counts = {split: pyarrow.parquet.read_metadata(paths[split]).num_rows for split in SPLITS}
    seeds = [spec.search.seed, *fresh_seeds(spec.search.seed, spec.verify.seeds)]
    prompts = pyarrow.parquet.read_table(paths["test"], columns=["prompt_ids"])["prompt_ids"]
    asked = [tuple(ids) for ids in prompts.to_pylist()]
    rows = {
        "train": training_rows(counts["train"], most_pairs(spec), seeds),
        "validation": np.arange(counts["validation"]),
        "test": test_rows(asked, spec.verify.prompts, spec.verify.pairs),
    }
    parts = [f"{len(rows[s]):,} of {counts[s]:,} {s}" for s in SPLITS]
    stage.say(f"scoring pairs under the reference: {', '.join(parts)}")
    key = {
        **reference.identity,
        "format": LOGPS,
        "data": data.name,
        "lora": spec.lora is not None,
        "rows": {s: ALL if len(rows[s]) == counts[s] else _identity(rows[s]) for s in SPLITS},
    }

    def build(out: Path) -> None:
        for split, scores in _scored(stage, data, reference.model, rows).items():
            logps = np.full((2, counts[split]), np.nan, np.float32)
            logps[:, rows[split]] = scores
            save_logps(out / f"{split}.npz", *logps)

    return build_once(stage.root, "reference", key, build)


def score_all(stage: Stage, prepared: Prepared) -> Prepared:
    """Return what is prepared with log-probs of all training pairs; score those that lack them.

    Args:
        stage: of a run that is prepared.
        prepared: what the run has.

    Raises:
        UserError: the reference gives a pair a log-prob that is not a number.
    """
    train = prepared.train
    logps = np.stack(load_logps(train.logps))
    rest = np.flatnonzero(np.isnan(logps[0]))
    if not len(rest):
        return prepared
    stage.say(f"scoring the other {len(rest):,} training pairs under the reference")
    folder = train.logps.parent
    inputs = json.loads((folder / META).read_text(encoding="utf-8"))["inputs"]

    def build(out: Path) -> None:
        scores = _scored(stage, train.pairs.parent, prepared.model, {"train": rest})
        logps[:, rest] = scores["train"]
        save_logps(out / "train.npz", *logps)
        for split in ("validation", "test"):
            shutil.copyfile(folder / f"{split}.npz", out / f"{split}.npz")

    whole = inputs | {"rows": inputs["rows"] | {"train": ALL}}
    complete = build_once(stage.root, "reference", whole, build) / "train.npz"
    return replace(prepared, train=replace(train, logps=complete))


def _identity(rows: np.ndarray) -> str:
    """Return what tells a choice of rows from others."""
    return hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()


def _scored(
    stage: Stage, data: Path, model: Path, rows: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return the log-probs of these rows of each split, `(2, rows)`; each device scores a shard.

    Raises:
        UserError: one of them is not a number.
    """
    files = [*files_of(model), *files_of(data / "tokenizer")]
    sent = stage.sent.add([*files, *(data / f"{split}.parquet" for split in rows)])
    shards = max(1, int(stage.cluster.gpus if stage.gpus else stage.cluster.cpus))
    score = ray.remote(num_cpus=1, num_gpus=stage.gpus, max_retries=2)(score_pairs)
    tasks = []
    for shard in range(shards):
        own = {split: positions[shard::shards] for split, positions in rows.items()}
        tasks.append(score.remote(stage.spec, sent, model, data, own))
    parts = ray.get(tasks)
    scored = {}
    for split, positions in rows.items():
        both = np.empty((2, len(positions)), np.float32)
        for shard, part in enumerate(parts):
            both[:, shard::shards] = part[split]
        if not np.isfinite(both).all():
            raise UserError(
                f"the reference {stage.spec.model!r} gives pairs of {split} a log-prob that is "
                "not a number: use an undamaged model, or set precision to fp32"
            )
        scored[split] = both
    return scored
