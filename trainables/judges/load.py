"""Load what `judge:` names, and check that it gives each answer a finite score."""

import math
from collections.abc import Callable
from textwrap import shorten
from typing import Any

import torch

from search_spaces.errors import UserError
from search_spaces.locations import QUICKSTART
from trainables.judges import Judge
from trainables.judges.python_file import blaming_user, from_file
from trainables.judges.reward_model import reward_model
from trainables.quickstart.judge import judge as exact_judge


def load_judge(judge: str, device: torch.device, revision: str | None = None) -> Judge:
    """Return the function (prompts, answers) -> scores that a search's `judge:` names.

    Args:
        judge: `quickstart`, a .py file that defines `judge(prompts, answers)`, or a reward model:
            the Hub id or folder of a sequence classifier with one label and a chat template.
        device: where a reward model computes.
        revision: the commit of one from the Hub.

    Raises:
        UserError: the judge cannot be loaded. The function itself raises it when a user's code
            fails, and when scores are too few, too many or not finite numbers.
    """
    if judge == QUICKSTART:
        return _checked(judge, blaming_user(judge, None, exact_judge))
    if judge.endswith(".py"):
        return _checked(judge, from_file(judge))
    return _checked(judge, reward_model(judge, device, revision))


def _checked(name: str, function: Callable[..., Any]) -> Judge:
    """Return the function with a check that it gives one finite number for each answer."""

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
