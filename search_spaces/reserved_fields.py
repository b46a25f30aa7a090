"""The fields of TRL and PEFT that are not the user's to set, each with the reason and the way out.

Every other field is taken as it is in `trl.DPOConfig` and `peft.LoraConfig`: a new one needs no
code here. Names are patterns, so that a new `save_...` is refused too.
"""

import fnmatch

Table = tuple[tuple[str, str], ...]

# DPOConfig fields that preftune sets itself, or that have no effect or clash here.
IN_TRAINING: Table = (
    ("max_steps num_train_epochs", "the budget decides how long a trial trains; set `budget`"),
    ("seed data_seed", "every trial's seeds come from the search's; set search.seed"),
    (
        "train_sampling_strategy",
        "the order of the pairs comes from the search's seed; leave it out",
    ),
    (
        "bf16 fp16 bf16_full_eval fp16_full_eval tf32",
        "the dtype is the same for the reference and every trial; set `precision`",
    ),
    ("use_cpu", "`resources` chooses the device; set resources.gpu to 0 for the CPU"),
    ("trust_remote_code", "it holds for the whole search; set it at the top level"),
    (
        "output_dir run_name project trackio_* logging_* log_* report_to disable_tqdm "
        "include_num_input_tokens_seen include_for_metrics debug skip_memory_metrics",
        "preftune names the run's folder and keeps its records; leave it out",
    ),
    (
        "eval_* do_* per_device_eval_batch_size prediction_loss_only batch_eval_metrics",
        "trials are measured at the rungs; set `evaluation` and search.rungs",
    ),
    (
        "save_* load_best_model_at_end metric_for_best_model greater_is_better "
        "resume_from_checkpoint ignore_data_skip restore_callback_states_from_checkpoint "
        "enable_jit_checkpoint",
        "preftune writes checkpoints and picks the winner by `objective`; leave it out",
    ),
    (
        "push_to_hub* hub_*",
        "publishing comes after the verdict; leave it out and use `preftune push`",
    ),
    (
        "precompute_ref_*",
        "the reference log-probs are computed once for the whole search; leave it out",
    ),
    (
        "remove_unused_columns label_names length_column_name dataset_num_proc",
        "the pairs are prepared once for the whole search; leave it out",
    ),
    (
        "auto_find_batch_size",
        "preftune halves the micro-batch itself when memory runs out, and the effective batch "
        "stays; leave it out",
    ),
    (
        "local_rank ddp_* fsdp fsdp_* deepspeed parallelism_config accelerator_config "
        "average_tokens_across_devices",
        "a trial runs on one device, and other trials on the others; leave it out",
    ),
    ("model_init_kwargs", "it has no effect on a model that is already loaded; leave it out"),
    ("use_cache", "training never reads a key-value cache; leave it out"),
    ("padding_free", "TRL has switched it off for now, so it has no effect; leave it out"),
    (
        "sync_ref_model ref_model_*",
        "the stored reference log-probs need a reference that does not change; leave it out",
    ),
    ("ld_alpha", "the stored reference log-probs weigh every token alike; leave it out"),
    ("pad_token", "TRL has deprecated it, and preparation fixes the tokenizer; leave it out"),
    (
        "use_liger_kernel liger_kernel_config",
        "TRL has deprecated it, and fuses the loss itself; leave it out",
    ),
    ("label_smoothing_factor", "DPO's loss never reads it; use label_smoothing"),
)

# DPOConfig fields that are fine for a whole search but not inside one.
IN_SPACE: Table = (
    (
        "max_length truncation_mode",
        "it would change the stored reference; fix it under `training`",
    ),
    (
        "activation_* gradient_checkpointing* torch_* dataloader_* pad_to_multiple_of "
        "full_determinism",
        "it changes speed and memory, not the model; fix it under `training`",
    ),
)

IN_LORA: Table = (
    (
        "task_type peft_type auto_mapping peft_version base_model_name_or_path revision "
        "inference_mode runtime_config",
        "preftune fills it in; leave it out",
    ),
    (
        "layer_replication loftq_config eva_config corda_config lora_ga_config kasa_config",
        "it changes the base weights, so the model without its adapter is no longer the "
        "reference; leave it out",
    ),
    (
        "arrow_config alora_invocation_tokens megatron_*",
        "it is for several adapters or several devices; leave it out",
    ),
)


def reason_for(name: str, table: Table) -> str | None:
    """Return the reason beside the first pattern that a name matches, or None."""
    for patterns, reason in table:
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns.split()):
            return reason
    return None
