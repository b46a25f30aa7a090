"""A checkpoint as a plain Hugging Face folder that anything can load; the winner's is `best/`."""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from results.publish.adapter import merge
from results.publish.card import published_texts
from results.run import layout
from results.run.listing import open_run
from search_spaces.errors import UserError
from search_spaces.spec import Spec
from trainables.artifacts import damage, write_text
from trainables.prepared import Prepared
from tune.cluster.checkpoint_storage import opened
from tune.record import Record, resume_command

WEIGHTS = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json")


def export_winner(
    spec: Spec, record: Record, prepared: Prepared, checkpoint: str, verdict: Mapping[str, Any]
) -> None:
    """Make `best/` from the winner's checkpoint.

    Args:
        spec: the resolved search.
        record: its run folder.
        prepared: what its trials were given.
        checkpoint: path or URI of the winner's last one.
        verdict: which the model's card reports; it is not on the disk yet.

    Raises:
        UserError: the checkpoint is damaged, or cannot be fetched.
    """
    with opened(checkpoint) as folder:
        if (fault := damage(folder)) is not None:
            raise UserError(
                f"the winner's checkpoint is damaged ({fault}), so there is no `best/`: verify the "
                f"other finalists with `{resume_command(record.folder)}`"
            )
        texts = published_texts(replace(open_run(record.folder), unwritten_verdict=verdict))
        model_folder(spec, record.folder / layout.BEST, prepared, folder, texts)


def model_folder(
    spec: Spec, out: Path, prepared: Prepared, checkpoint: Path, texts: Mapping[str, str]
) -> None:
    """Make a model's folder, all of it or nothing.

    Args:
        out: the folder, which replaces one of that name.
        checkpoint: an undamaged one: a whole model, whose weights are copied as they were measured,
            in float32; or a LoRA adapter, which is merged into its base.
        texts: files to write beside the model, by name.
    """
    work = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        if spec.lora is None:
            for pattern in WEIGHTS:
                for path in checkpoint.glob(pattern):
                    shutil.copy2(path, work / path.name)
        else:
            # On the driver's node: the files are there.
            node = ray.get_runtime_context().get_node_id()
            here = NodeAffinitySchedulingStrategy(node, False)
            remote = ray.remote(num_cpus=0, scheduling_strategy=here)(merge)
            remote_code = spec.trust_remote_code
            task = remote.remote(
                prepared.model, checkpoint, prepared.tokenizer, work, trust_remote_code=remote_code
            )
            ray.get(task)
        if spec.trust_remote_code:
            for path in prepared.model.glob("*.py"):
                shutil.copy2(path, work / path.name)
        shutil.copytree(prepared.tokenizer, work, dirs_exist_ok=True)
        for name, text in texts.items():
            write_text(work / name, text)
        for path in work.glob("*.safetensors"):
            path.chmod(0o644)  # saved for their owner alone
        work.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        work.rename(out)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
