"""What the stages of the preparation hand to a trial: paths of files, and the judge's commit."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class Split:
    """One split of the pairs: their tokens, the reference's log-probs, its sampled answers."""

    pairs: Path  # parquet
    logps: Path  # npz
    answers: Path | None  # JSON lines; None for train, on which nothing is sampled


@dataclass(frozen=True)
class Prepared:
    """All that a trial sees.

    Attributes:
        model: folder of the reference, where every trial starts.
        tokenizer: folder, with the chat template.
        train: what it learns from.
        held_out: what its rungs are measured on: validation in a search, the test split in
            verification and nowhere else.
        judge_revision: the commit of a judge from the Hub, which may move on meanwhile.
    """

    model: Path
    tokenizer: Path
    train: Split
    held_out: Split
    judge_revision: str | None = None

    def files(self) -> list[Path]:
        """Return every file of it, for sending to a node that cannot read this storage."""
        folders = [self.model, self.tokenizer]
        files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
        for split in (self.train, self.held_out):
            files += [path for path in (split.pairs, split.logps, split.answers) if path]
        return sorted(files)

    def at(self, here: Callable[[Path], Path]) -> "Prepared":
        """Return the same files where they are on this node."""

        def moved(split: Split) -> Split:
            answers = None if split.answers is None else here(split.answers)
            return Split(here(split.pairs), here(split.logps), answers)

        return replace(
            self,
            model=here(self.model),
            tokenizer=here(self.tokenizer),
            train=moved(self.train),
            held_out=moved(self.held_out),
        )
