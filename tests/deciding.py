"""A search without Ray and without training: its journal, its run folder and its rungs."""

from pathlib import Path

import numpy as np

from search_spaces.spec import Spec, validate
from trainables.trial_report import Report
from tune.record import Record, create
from tune.rungs import Rungs
from tune.study import Study


def spec_of(storage: Path) -> Spec:
    """Return a search with rungs at 100, 300 and 900 pairs."""
    return validate(
        {
            "model": "quickstart",
            "dataset": {"path": "quickstart"},
            "judge": "quickstart",
            "space": {
                "learning_rate": {"loguniform": [1e-5, 1e-2]},
                "loss_type": {"choice": [["sigmoid"], ["sigmoid", "sft"]]},
            },
            "budget": {"pairs": 900},
            "search": {"trials": 9},
            "storage": str(storage),
        }
    )


class Desk:
    """A search to which a test reports as trials would."""

    def __init__(self, spec: Spec, folder: Path | None = None) -> None:
        self.spec = spec
        self.record = create(spec, "t", True, "test") if folder is None else Record(folder)
        self.study = Study(spec, self.record.folder)
        self.over: str | None = None
        self.rungs = Rungs(
            spec.objective,
            spec.rungs_pairs,
            spec.search.scheduler == "asha",
            self.study,
            self.record,
            lambda: self.over,
        )

    def rung(self, number: int, rung: int, win_rate: float | None, kl: float = 1.0) -> bool:
        """Report a rung of a trial; return whether it continues."""
        pairs = self.spec.rungs_pairs[rung]
        measures = {"win_rate": win_rate, "kl": kl}
        report = Report(
            step=pairs, pairs=pairs, rung=rung, measures=measures, deltas=np.zeros(2, np.float32)
        )
        return self.rungs.reported(number, report)
