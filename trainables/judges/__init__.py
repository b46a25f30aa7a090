"""Judges: anything that gives (prompt, answer) a number, the higher the better."""

from collections.abc import Callable

# (prompts, answers) -> one score for each answer
Judge = Callable[[list[str], list[str]], list[float]]
