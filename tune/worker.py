"""Every function that runs on a Ray worker; all take plain arguments.

One file, longer than others: whoever wants to know what leaves the driver reads it here alone.
"""

import gc
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import ray.tune

from results.run import layout
from search_spaces.errors import UserError
from search_spaces.spec import Spec
from trainables.artifacts import storage_fault
from trainables.judges import Judge
from trainables.prepared import Prepared
from trainables.trial_report import Report
from tune.cluster.checkpoint_storage import NotReached, opened, said
from tune.cluster.connection import host
from tune.cluster.latest_checkpoint import CheckpointOnRequest, keep, newest
from tune.cluster.liveness import heartbeats, with_heartbeats
from tune.cluster.preemption import save_requested
from tune.cluster.share import Share, allocatable
from tune.cluster.shipping import Shipment
from tune.inputs import Inputs

LEARN = "train"  # the name of the task that trains on all pairs
ANSWERING = "reference answers"  # the name of the task that samples and judges them


def run_trial(
    config: dict[str, Any], spec: Spec, prepared: Prepared, sent: Shipment, share: Share
) -> None:
    """Run one trial: `trainables.dpo.train`, its reports handed to Ray Tune.

    An error of the trial's own is a report, not an exception: Ray would start it again, and only a
    process that died deserves that.

    Args:
        config: the trial's `number`, its `params`, and the checkpoint to `resume_from`.
        spec: the resolved search.
        prepared: what stage 1 made, by its paths on the driver's node.
        sent: the files that travelled to other nodes.
        share: of a node, for one trial.
    """
    from trainables.dpo import failure, train

    device = "unknown"

    def report(report: Report) -> None:
        result = {
            **{name: value for name, value in report.measures.items() if value is not None},
            "pairs": report.pairs,
            "trial": config["number"],
            "device": device,
            "node": host(),
            "report": replace(report, checkpoint=None),
        }
        folder = report.checkpoint
        checkpoint = folder and ray.tune.Checkpoint.from_directory(str(folder))
        try:
            ray.tune.report(result, checkpoint=checkpoint)
        except Exception as error:
            place = spec.checkpoints or f"the storage {spec.storage!r}"
            raise NotReached(
                f"a checkpoint cannot be kept in {place} from node {host()} ({said(error)})"
            ) from error

    start = ray.tune.get_checkpoint() or config["resume_from"]
    try:
        judge, device = ready(spec, share, sent, prepared.judge_revision)
        with opened(start) if start else nullcontext() as resume_from:
            train(
                spec,
                config["params"],
                prepared.at(sent.here),
                report,
                seed=spec.search.seed,
                judge=judge,
                resume_from=resume_from,
                save_now=save_requested(),
            )
    except Exception as error:
        # What every other trial would meet too is not a failure of this one: it ends the search.
        if isinstance(error, NotReached):
            ray.tune.report({"storage": str(error)})
        elif fault := storage_fault(error):
            ray.tune.report({"storage": f"node {host()} has no room to work in ({fault})"})
        else:
            report(failure(error))


@dataclass(frozen=True)
class Model:
    """A finalist to measure on the test split: its own checkpoint, or trained again.

    Attributes:
        number: of the trial.
        seed: to train it again with; None for its own checkpoint.
        params: its configuration.
        checkpoint: path or URI of its own checkpoint; None where it is trained again.
        home: the folder in which a training keeps a checkpoint when it is asked for one.
    """

    number: int
    seed: int | None
    params: dict[str, Any]
    checkpoint: str | None
    home: Path

    @property
    def task(self) -> str:
        """The name of its task."""
        return f"{self.number}-{self.seed}"


def measure(model: Model, spec: Spec, prepared: Prepared, sent: Shipment, share: Share) -> Report:
    """Measure one finalist on the test split.

    Args:
        model: the finalist.
        spec: verification's, with one rung.
        prepared: what stage 1 made, with the test split held out.
        sent: the files that travelled to other nodes.
        share: of a node, for one training.
    """
    from trainables.dpo import failure, measure_once

    own = model.checkpoint
    latest = CheckpointOnRequest(model.home)
    try:
        with heartbeats(model.task) as beat:
            judge, _ = ready(spec, share, sent, prepared.judge_revision)
            with opened(own) if own else nullcontext() as checkpoint:
                return measure_once(
                    spec,
                    model.params,
                    prepared.at(sent.here),
                    seed=spec.search.seed if model.seed is None else model.seed,
                    checkpoint=checkpoint,
                    judge=judge and with_heartbeats(judge, beat),
                    resume_from=None if own else latest.start(),
                    keep=latest.keep,
                    save_now=latest.save_now,
                )
    except UserError as error:
        return failure(error)


def learn(
    params: dict[str, Any],
    home: Path,
    spec: Spec,
    prepared: Prepared,
    sent: Shipment,
    share: Share,
) -> Report:
    """Train a configuration, and keep the newest checkpoint and the log where they are found again.

    Args:
        params: the configuration.
        home: the folder of both, on a path that the driver shares.
        spec: with one rung; the other arguments are as `measure` has them.

    Returns:
        The last report, without its checkpoint.
    """
    from trainables.dpo import failure, train

    last = Report()

    def report(report: Report) -> None:
        nonlocal last
        last = report
        try:
            with (home / layout.LOG).open("a", encoding="utf-8") as file:
                file.write(report.log)
            if report.checkpoint is not None:
                keep(report.checkpoint, home, report.pairs)
        except OSError as error:
            raise UserError(
                f"a checkpoint cannot be kept in {home} from node {host()} "
                f"({storage_fault(error) or error})"
            ) from error

    try:
        with heartbeats(LEARN) as beat:
            judge, _ = ready(spec, share, sent, prepared.judge_revision)
            train(
                spec,
                params,
                prepared.at(sent.here),
                report,
                seed=spec.search.seed,
                judge=judge and with_heartbeats(judge, beat),
                resume_from=newest(home),
                save_now=save_requested(),
            )
    except Exception as error:
        return failure(error)
    return replace(last, checkpoint=None, log="")


def ready(
    spec: Spec, share: Share, sent: Shipment, judge_revision: str | None
) -> tuple[Judge | None, str]:
    """Limit this process to its share; return the judge and the device's name.

    Raises:
        UserError: the judge cannot be loaded, or the device lacks the precision asked for.
    """
    import torch

    from trainables.devices import device_and_dtype
    from trainables.judges.load import load_judge

    _freeze_imports()
    device, _ = device_and_dtype(spec.precision)
    name = device.type
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        # A trial that outgrows its share fails alone, instead of taking its neighbours' memory.
        torch.cuda.set_per_process_memory_fraction(allocatable(share.gpu or 1.0))
    else:
        torch.set_num_threads(max(1, int(share.cpu)))
    if spec.judge is None:
        return None, name
    return load_judge(sent.named(spec.judge), device, judge_revision), name


def memory_of_a_trial(
    spec: Spec, prepared: Prepared, sent: Shipment
) -> tuple[int, int] | UserError:
    """Return the bytes that the widest configuration needs on an idle GPU, and those it has.

    An error is returned: Ray would wrap what is raised.
    """
    import torch

    from trainables.memory_probe import peak_of_a_step, widest

    try:
        judge, _ = ready(spec, Share(cpu=1, gpu=1, concurrent=1), sent, prepared.judge_revision)
        here = prepared.at(sent.here)
        peak = peak_of_a_step(spec, widest(spec, here.model), here, judge)
    except torch.OutOfMemoryError:
        return UserError(
            "one pair of the longest does not fit on the GPU: lower max_length, turn "
            "gradient_checkpointing on, or use LoRA"
        )
    except UserError as error:
        return error
    free, total = torch.cuda.mem_get_info()
    # Nothing else runs there now: what is taken and not by the allocator is the context.
    return peak + total - free - torch.cuda.memory_reserved(), total


@cache  # later calls would also freeze what an earlier trial has left, for good
def _freeze_imports() -> None:
    """Take what is imported by now out of all collections of garbage.

    Each goes through hundreds of thousands of objects that stay; accelerate, Ray and the end of a
    trial collect so often that it was a fifth of the time of a small search.
    """
    gc.collect()  # a worker that has prepared something may hold its model still
    gc.freeze()


def max_length(spec: Spec) -> int:
    """Return how many tokens prompt and answer may have together; TRL's default is 1024."""
    return int(spec.configuration({}).dpo.get("max_length", 1024))


def build_checks(folder: Path, spec: Spec, inputs: Inputs) -> None:
    """Fill a `checked` folder: how many adapters were tried on the model."""
    from trainables.artifacts import write_json
    from trainables.model_checks import check_adapters, check_generation_config

    check_generation_config(inputs.base, spec)
    write_json(folder / "checked.json", {"adapters": check_adapters(inputs.base, spec)})


def build_data(folder: Path, spec: Spec, inputs: Inputs) -> None:
    """Fill a `data` folder: the pairs, clean, split and tokenised, and the report of them."""
    from trainables.data.columns import Reading
    from trainables.data.preferences import prepare_pairs
    from trainables.data.sources import load_rows
    from trainables.models import check_fits, load_model, load_tokenizer

    d, remote = spec.dataset, spec.trust_remote_code
    model = load_model(inputs.base, trust_remote_code=remote)
    tokenizer = load_tokenizer(inputs.base, trust_remote_code=remote)
    check_fits(model, tokenizer, max_length(spec), spec.model)
    reading = Reading(d.columns, d.text, d.chat_template_kwargs)
    # The commit that the key was made from, not the branch: it may move in between.
    rows = load_rows(d.path, d.name, d.split, inputs.source["revision"], reading)
    prepare_pairs(
        rows.data,
        tokenizer,
        max_length=max_length(spec),
        test_fraction=d.test_fraction,
        validation_pairs=d.validation_pairs,
        seed=d.seed,
        out=folder,
        source=inputs.source,
        reading=replace(reading, unread=rows.unread),
    )


def build_sft(folder: Path, spec: Spec, sent: Shipment, base: Path, data: Path) -> None:
    """Fill an `sft` folder: the model of the supervised pass, and its log."""
    from trainables.sft import run_sft

    assert spec.sft is not None
    run_sft(
        sent.here(base),
        sent.here(data),
        folder,
        spec.sft,
        seed=spec.search.seed,
        precision=spec.precision,
        trust_remote_code=spec.trust_remote_code,
    )


def score_pairs(
    spec: Spec, sent: Shipment, model: Path, data: Path, rows: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return the reference's log-probs of some pairs of each split.

    Args:
        rows: positions in each split.

    Returns:
        For each split log-probs of the chosen and the rejected answers, nats, `(2, rows)`.
    """
    import torch

    from trainables.devices import device_and_dtype, weights_dtype
    from trainables.fused_head import load_scorer
    from trainables.models import load_tokenizer
    from trainables.reference import logps_of_pairs, read_pairs

    device, autocast = device_and_dtype(spec.precision)
    if device.type == "cpu":
        torch.set_num_threads(1)
    remote = spec.trust_remote_code
    dtype = weights_dtype(spec.lora is not None, autocast)
    policy = load_scorer(sent.here(model), dtype=dtype, trust_remote_code=remote).to(device)
    tokenizer = load_tokenizer(sent.here(data / "tokenizer"), trust_remote_code=remote)
    scored = {}
    for split, positions in rows.items():
        pairs = read_pairs(sent.here(data / f"{split}.parquet")).take(positions)
        chosen, rejected = logps_of_pairs(
            policy,
            pairs,
            batch_size=64,
            pad_token_id=tokenizer.pad_token_id or 0,
            autocast=autocast,
        )
        scored[split] = np.stack([chosen, rejected])
    return scored


def build_answers(
    folder: Path, spec: Spec, sent: Shipment, model: Path, data: Path, judge_revision: str | None
) -> None:
    """Fill an `answers` folder: the reference's answers to both held-out splits, judged."""
    from trainables.devices import device_and_dtype
    from trainables.evaluation.sampling import Sampling
    from trainables.judges.load import load_judge
    from trainables.reference import reference_answers

    device, _ = device_and_dtype(spec.precision)
    judge = None
    if spec.judge is not None:
        judge = load_judge(sent.named(spec.judge), device, judge_revision)
    with heartbeats(ANSWERING) as beat:
        reference_answers(
            sent.here(model),
            sent.here(data),
            folder,
            judge and with_heartbeats(judge, beat),
            {"validation": spec.evaluation.prompts, "test": spec.verify.prompts},
            Sampling(spec.evaluation.max_new_tokens, spec.search.seed, spec.precision),
            trust_remote_code=spec.trust_remote_code,
        )
