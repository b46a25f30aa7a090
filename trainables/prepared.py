"""What the stages of the preparation hand to a trial: paths of files, nothing else."""

from collections.abc import Callable
from dataclasses import dataclass
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
    """

    model: Path
    tokenizer: Path
    train: Split
    held_out: Split

    def files(self) -> list[Path]:
        """Return every file of it, for sending to a node that cannot read this storage."""
        folders = [self.model, self.tokenizer]
        found = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
        for split in (self.train, self.held_out):
            found += [path for path in (split.pairs, split.logps, split.answers) if path]
        return sorted(found)

    def at(self, here: Callable[[Path], Path]) -> "Prepared":
        """Return the same files where they stand on this node."""

        def moved(split: Split) -> Split:
            answers = None if split.answers is None else here(split.answers)
            return Split(here(split.pairs), here(split.logps), answers)

        return Prepared(
            here(self.model), here(self.tokenizer), moved(self.train), moved(self.held_out)
        )
