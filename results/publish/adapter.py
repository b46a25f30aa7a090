"""A trial's LoRA adapter: merged into its base, or alone and fit for other machines."""

import json
from collections.abc import Mapping
from pathlib import Path

from results.publish.public_view import hub_id, name_of
from results.run.run import Run
from search_spaces.errors import UserError
from search_spaces.locations import is_hub_id

ADAPTER = frozenset({"adapter_config.json", "adapter_model.safetensors"})


def merged(run: Run, adapter: Path, out: Path, what: str) -> None:
    """Write the whole model of an adapter: its base with the adapter's matrices added in.

    In float32 on the CPU, as the winner's is made.

    Args:
        run: whose reference the adapter was trained on.
        adapter: its folder.
        out: gets `config.json` and the weights.
        what: the trial in words.

    Raises:
        UserError: base or adapter cannot be loaded.
    """
    import torch
    from peft import PeftModel
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    base = run.reference_model()
    revision = (run.info.get("model") or {}).get("revision") if is_hub_id(str(base)) else None
    disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            base,
            revision=revision or "main",
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=bool(run.spec.get("trust_remote_code")),
        )
        PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().save_pretrained(out)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise UserError(
            f"{what} is a LoRA adapter and cannot be merged into its base model {base} ({reason}); "
            "put the base back, or connect to the Hub that has it."
        ) from error


def portable(run: Run, files: Mapping[str, Path], scratch: Path) -> dict[str, Path]:
    """Make an adapter's configuration name its base as others find it.

    Args:
        run: an opened run.
        files: of the adapter.
        scratch: where the configuration is written.

    Returns:
        `adapter_config.json` as it is to be published.

    Raises:
        UserError: nobody else can have the base.
    """
    model = run.info.get("model") or {}
    base = hub_id(run, "model")
    if run.spec.get("sft") or base is None:
        after = " after a supervised pass" if run.spec.get("sft") else ""
        raise UserError(
            "An adapter works only with the model that it was trained on, and "
            f"{name_of(run, 'model')}{after} is on this machine alone: push the merged model, "
            "without --adapter."
        )
    config = json.loads(files["adapter_config.json"].read_text(encoding="utf-8"))
    config |= {"base_model_name_or_path": base, "revision": model.get("revision")}
    out = scratch / "adapter_config.json"
    out.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    return {out.name: out}
