"""Which sampled answers a report shows, side by side."""

from dataclasses import dataclass
from itertools import islice
from typing import Any

from results.formatting import plain
from results.run import layout
from results.run.files import read_lines
from results.run.run import Run
from results.run.schema_checks import Sample
from results.views import ranked

FIRST, MOST = 4, 3  # prompts that are shown: the first of the split, and where answers differ most
LONGEST = 700  # characters of an answer or a prompt

Record = dict[str, Any]  # a line of `samples.jsonl`


@dataclass(frozen=True)
class Exchange:
    """A prompt and the answers to it, in the order of `Answers.names`; None where there is none."""

    prompt: str
    answers: list[Record | None]

    @property
    def gain(self) -> float:
        """How far the judge puts the first trial's answer above the reference's; 0 without one."""
        before, after = ((answer or {}).get("score") for answer in self.answers[:2])
        return 0.0 if before is None or after is None else float(after) - float(before)


@dataclass(frozen=True)
class Answers:
    """Who answered, and titled groups of exchanges."""

    names: list[str]
    groups: list[tuple[str, list[Exchange]]]


def answers(run: Run) -> Answers:
    """Answers of the reference, the winner and the runner-up to a few prompts of validation.

    Without a winner, of the two best trials that have sampled any.
    """
    verdict = run.verdict() or {}
    winner = verdict.get("winner")
    measured = [trial.number for trial in ranked(run) if trial.state in ("complete", "stopped")]
    finalists = [finalist.get("number") for finalist in verdict.get("finalists") or []]
    order = [n for n in dict.fromkeys([winner, *finalists, *measured]) if n is not None]
    sampled = ((n, latest) for n in order if (latest := _latest(run.samples(n))))
    trials = dict(islice(sampled, 2))
    if not trials:
        return Answers([], [])
    first, prompts = next(iter(trials.items()))
    prepared = (run.info.get("prepared") or {}).get("answers")
    stored = run.storage / layout.PREPARED / str(prepared) / "validation.jsonl"
    everyone = [_latest(read_lines(stored, Sample)[0]), *trials.values()]
    exchanges = [
        Exchange(cut(line.get("prompt")), [answered.get(row) for answered in everyone])
        for row, line in prompts.items()
    ]
    rest = sorted(exchanges[FIRST:], key=lambda exchange: exchange.gain)
    groups = [
        ("The first prompts", exchanges[:FIRST]),
        (f"Where trial {first} gains most", [e for e in rest[::-1][:MOST] if e.gain > 0]),
        (f"Where trial {first} loses most", [e for e in rest[:MOST] if e.gain < 0]),
    ]
    names = [f"trial {n}{', the winner' if n == winner else ''}" for n in trials]
    return Answers(["reference", *names], [group for group in groups if group[1]])


def cut(text: object) -> str:
    """A text as far as the page shows it."""
    whole = plain(text or "").strip()
    return whole if len(whole) <= LONGEST else f"{whole[:LONGEST].rstrip()} …"


def _latest(lines: list[Record]) -> dict[Any, Record]:
    """The answers of the last evaluation, by the number of the raw row."""
    last = lines[-1].get("pairs") if lines else None
    return {line.get("row"): line for line in lines if line.get("pairs") == last}
