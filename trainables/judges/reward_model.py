"""A judge that is a reward model: a sequence classifier with one label."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from safetensors import SafetensorError

from search_spaces.errors import UserError
from trainables.devices import autocast_dtype
from trainables.hub import first_sentence, snapshot
from trainables.judges import Judge
from trainables.models import load_tokenizer, quiet

BATCH = 16  # conversations that a reward model reads at once


@lru_cache(maxsize=1)  # workers are reused: the next trial of the search has the same judge
def reward_model(path: str, device: torch.device, revision: str | None) -> Judge:
    from transformers import AutoModelForSequenceClassification

    folder, _ = snapshot(path, revision)
    tokenizer = load_tokenizer(folder)
    try:
        with quiet():
            model, info = AutoModelForSequenceClassification.from_pretrained(
                folder,
                use_safetensors=True,  # a pickle can run code
                dtype=autocast_dtype("auto", device) or torch.float32,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"The judge `{path}` cannot be loaded as a reward model: {first_sentence(error)} Give "
            "a Hub id or a folder with safetensors, a .py file, or `quickstart`."
        ) from error
    if info["missing_keys"] or model.config.num_labels != 1:
        # Without a head of its own, transformers would give it one that scores at random.
        raise UserError(
            f"The judge `{path}` is no reward model: it needs a trained head with one label, and "
            f"it has {model.config.num_labels} labels and lacks {sorted(info['missing_keys'])}."
        )
    if not tokenizer.chat_template:
        raise UserError(f"The judge `{path}` has no chat template: choose one that has.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    model.eval()

    def judge(prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}],
                tokenize=False,
            )
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        scores = [0.0] * len(texts)
        rows = sorted(range(len(texts)), key=lambda row: len(texts[row]), reverse=True)
        model.to(device)
        try:
            for start in range(0, len(rows), BATCH):
                batch = rows[start : start + BATCH]
                inputs = tokenizer(
                    [texts[row] for row in batch],
                    padding=True,
                    add_special_tokens=False,  # the template has written them
                    return_tensors="pt",
                ).to(device)
                with torch.no_grad():
                    logits = model(**inputs).logits[:, 0].float().tolist()
                for row, score in zip(batch, logits, strict=True):
                    scores[row] = score
        finally:
            model.to("cpu")  # between rungs it waits in host memory, and training has the device
        return scores

    return judge
