"""The winning configuration as a file for TRL's own command: `trl dpo --config dpo.yaml`."""

import math
from typing import Any

import yaml

from results.publish.public_view import Candidate, candidate, hub_id, last_part, name_of
from results.run.run import Run
from search_spaces.configuration import configure

# TRL's defaults for what is left out of a spec; a test compares them with the installed TRL.
BATCH_DEFAULTS = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
# PEFT's `LoraConfig` field -> TRL's `ModelConfig` field and PEFT's default, which TRL changes.
LORA = {
    "r": ("lora_r", 8),
    "lora_alpha": ("lora_alpha", 8),
    "lora_dropout": ("lora_dropout", 0.0),
    "target_modules": ("lora_target_modules", None),
    "target_parameters": ("lora_target_parameters", None),
    "modules_to_save": ("lora_modules_to_save", None),
    "use_rslora": ("use_rslora", False),
    "use_dora": ("use_dora", False),
}


def dpo_yaml(run: Run, chosen: Candidate | None = None) -> str:
    """Write a model's configuration as fields of ScriptArguments, DPOConfig and ModelConfig.

    What such a file cannot say (an SFT pass, a local or embedded data set, a field of LoraConfig
    that TRL's command does not offer) is a comment in it.

    Args:
        run: an opened run.
        chosen: the model; default: the winner's.

    Raises:
        UserError: the verdict names no winner and no model was given.
    """
    chosen = chosen or candidate(run)
    pairs = chosen.full["pairs"] if chosen.full else None
    spec = run.spec if pairs is None else run.spec | {"budget": {"pairs": pairs}}
    model, dataset = run.info.get("model") or {}, spec.get("dataset") or {}
    path = model.get("path") or spec.get("model")
    given = configure(spec.get("training") or {}, spec.get("lora"), chosen.params)
    training, lora = given.dpo, given.lora or {}
    fields: dict[str, Any] = {"model_name_or_path": name_of(run, "model")}
    if model.get("revision"):
        fields["model_revision"] = model["revision"]
    fields["dataset_name"] = name_of(run, "dataset")
    if dataset.get("name"):
        fields["dataset_config"] = dataset["name"]
    fields["dataset_train_split"] = dataset.get("split") or "train"
    fields |= {"output_dir": last_part(run.name), "max_steps": _steps(spec, training)}
    fields |= {"seed": _seed(run, chosen.number), "bf16": _bf16(run)}
    fields |= training
    comments = _comments(run, path, dataset, lora)
    if pairs is not None:
        comments.insert(1, f"Its steps are those of all {pairs:,} pairs; the search's had fewer.")
    if lora:
        fields["use_peft"] = True
        for name, (trl_name, default) in LORA.items():
            if (value := lora.get(name, default)) is not None:
                fields[trl_name] = value
    head = "".join(f"# {line}\n" for line in comments)
    return head + yaml.safe_dump(fields, sort_keys=False)


def _steps(spec: dict[str, Any], training: dict[str, Any]) -> int:
    """Optimizer steps of one full trial: the budget's, or its pairs over the effective batch."""
    budget = spec.get("budget") or {}
    if budget.get("steps"):
        return int(budget["steps"])
    batch = math.prod(int(training.get(name, n)) for name, n in BATCH_DEFAULTS.items())
    return math.ceil(int(budget.get("pairs") or batch) / batch)


def _seed(run: Run, trial: int) -> int:
    search = (run.info.get("seeds") or {}).get("search")
    seed = run.trial(trial).attrs.get("seed", search)
    return 42 if seed is None else int(seed)


def _bf16(run: Run) -> bool:
    precision = str(run.spec.get("precision") or "auto")
    gpus = (run.info.get("hardware") or {}).get("gpus") or 0
    return precision == "bf16" or (precision == "auto" and gpus > 0)


def _comments(run: Run, path: Any, dataset: dict[str, Any], lora: dict[str, Any]) -> list[str]:
    lines = [
        f"Found by preftune in run {last_part(run.name)}; use it with: trl dpo --config dpo.yaml"
    ]
    if run.spec.get("sft"):
        lines.append("The search started from this model after a supervised pass: do that first.")
    elif not hub_id(run, "model"):
        lines.append(f"model_name_or_path: {_local(path)}.")
    if not hub_id(run, "dataset"):
        lines.append(f"dataset_name: {_local(dataset.get('path'))}.")
    unknown = sorted(set(lora) - set(LORA))
    if unknown:
        lines.append(f"TRL's command has no field for: {', '.join(f'lora.{n}' for n in unknown)}")
    return lines


def _local(path: Any) -> str:
    if path == "quickstart":
        return "`quickstart` is built into preftune; no other tool knows the name"
    return "the last part of a local path; put yours there"
