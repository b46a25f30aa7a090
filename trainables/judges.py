"""Judges: anything that gives (prompt, answer) a number, the higher the better."""

import importlib.util
import math
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors import SafetensorError

from trainables import judge_file
from trainables.devices import autocast_dtype
from trainables.errors import UserError
from trainables.hub import first_sentence, snapshot
from trainables.models import load_tokenizer, quiet

Judge = Callable[[list[str], list[str]], list[float]]

BATCH = 16  # conversations that a reward model reads at once


def load_judge(judge: str, device: torch.device, revision: str | None = None) -> Judge:
    """Return the function (prompts, answers) -> scores that a search's `judge:` names.

    Args:
        judge: `quickstart`, a .py file that defines `judge(prompts, answers)`, or a reward model:
            the Hub id or folder of a sequence classifier with one label and a chat template.
        device: where a reward model computes.
        revision: the commit of one from the Hub.

    Raises:
        UserError: The judge cannot be loaded. The function itself raises it when a user's code
            fails, and when scores are too few, too many or not finite numbers.
    """
    if judge == "quickstart":
        from trainables.quickstart.judge import judge as exact

        return _checked(judge, _blaming_user(judge, None, exact))
    if judge.endswith(".py"):
        return _checked(judge, _from_file(judge))
    return _checked(judge, _reward_model(judge, device, revision))


def _checked(name: str, function: Callable[..., Any]) -> Judge:
    """Let only as many finite numbers through as there were answers."""

    def scores_of(prompts: list[str], answers: list[str]) -> list[float]:
        scores = function(prompts, answers)
        try:
            right, returned = len(scores) == len(answers), f"{len(scores)} scores"
        except TypeError:
            right, returned = False, repr(scores)
        if not right:
            raise UserError(
                f"The judge `{name}` returned {returned} for {len(answers)} answers: it must "
                "return a list with one number for each."
            )
        numbers = []
        for i, score in enumerate(scores):
            try:
                numbers.append(float("nan") if isinstance(score, str) else float(score))
            except (TypeError, ValueError):
                numbers.append(float("nan"))
            if not math.isfinite(numbers[-1]):
                raise UserError(
                    f"The judge `{name}` scored answer {i} with {score!r}: a score must be a "
                    f"finite number. The prompt was {shorten(prompts[i], 80)!r}, the answer "
                    f"{shorten(answers[i], 80)!r}."
                )
        return numbers

    return scores_of


def _from_file(path: str) -> Callable[..., Any]:
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise UserError(f"The judge `{path}` is not there: no such file as {file}.")
    spec = importlib.util.spec_from_file_location(f"judge_{file.stem}", file)
    assert spec is not None and spec.loader is not None  # a .py file always has a loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up the module of a class
    _blaming_user(path, file, spec.loader.exec_module)(module)
    function = getattr(module, "judge", None)
    if not callable(function):
        raise UserError(f"The judge `{path}` defines no function `judge`: {judge_file.NEEDED}.")
    return _blaming_user(path, file, function)


def _blaming_user(name: str, file: Path | None, function: Callable[..., Any]) -> Callable[..., Any]:
    """Turn an exception in a judge's code into one sentence with its line."""

    def called(*args: Any) -> Any:
        try:
            return function(*args)
        except Exception as error:
            lines = [
                f.lineno
                for f in traceback.extract_tb(error.__traceback__)
                if f.filename == str(file)
            ]
            if isinstance(error, SyntaxError) and error.filename == str(file):
                lines.append(error.lineno)
            where = f" ({file}, line {lines[-1]})" if lines else ""
            message = error.msg if isinstance(error, SyntaxError) else str(error)
            raise UserError(
                f"The judge `{name}` failed{where}: {type(error).__name__}: {message}"
            ) from error

    return called


@lru_cache(maxsize=1)  # workers are reused: the next trial of the search has the same judge
def _reward_model(path: str, device: torch.device, revision: str | None) -> Judge:
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
