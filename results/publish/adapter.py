"""A trial's LoRA adapter: merged into its base, or alone and fit for other machines."""

import json
from collections.abc import Mapping
from pathlib import Path

from results.publish.public_view import hub_id, name_of
from results.run.run import Run
from search_spaces.errors import UserError
from search_spaces.locations import is_hub_id

ADAPTER = frozenset({"adapter_config.json", "adapter_model.safetensors"})


def merged(run: Run, adapter: Path, out: Path) -> None:
    """Write the whole model of a run's adapter, as `best/` has the winner's.

    Args:
        run: whose reference the adapter was trained on.
        adapter: its folder.
        out: gets `config.json`, `generation_config.json` and the weights.

    Raises:
        UserError: base or adapter cannot be loaded.
    """
    base = run.reference_model()
    merge(
        base,
        adapter,
        run.reference_tokenizer() or adapter,
        out,
        revision=(run.info.get("model") or {}).get("revision") if is_hub_id(base) else None,
        trust_remote_code=bool(run.spec.get("trust_remote_code")),
    )


def merge(
    base: str | Path,
    adapter: Path,
    tokenizer: Path,
    out: Path,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Add an adapter's matrices to its base, and write the whole model.

    The sum is made in float32 and rounded once, to the dtype that each weight of the base has.
    Special tokens are those of the tokenizer, as the Trainer sets them before it trains: where the
    chat template ends a turn with a token of its own, generation has to stop there.

    Args:
        base: folder or Hub id of the model that the adapter was trained on.
        adapter: its folder.
        tokenizer: folder of the tokenizer that it was trained with.
        out: gets `config.json`, `generation_config.json` and the weights.
        revision: of a Hub id.

    Raises:
        UserError: base, adapter or tokenizer cannot be loaded.
    """
    from peft import PeftModel
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.trainer_utils import align_special_tokens
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            base,
            revision=revision or "main",
            dtype="auto",
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
        )
        dtypes = {name: weight.dtype for name, weight in model.state_dict().items()}
        whole = PeftModel.from_pretrained(model.float(), str(adapter)).merge_and_unload()
        for name, weight in [*whole.named_parameters(), *whole.named_buffers()]:
            weight.data = weight.data.to(dtypes.get(name, weight.dtype))
        align_special_tokens(
            whole, AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=trust_remote_code)
        )
        whole.save_pretrained(out)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise UserError(
            f"The LoRA adapter {adapter} cannot be merged into its base model {base} ({reason}). "
            "Restore the base, or connect to the Hub that has it."
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
