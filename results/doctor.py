"""The doctor: what looks unhealthy in a trial or in the data, in words.

From the run folder alone.
"""

from results.data_signs import DATA_SIGNS
from results.findings import Finding
from results.run import Run, Trial
from results.trial_signs import TRIAL_SIGNS

__all__ = ["Finding", "of_data", "of_trial"]


def of_trial(run: Run, trial: Trial) -> list[Finding]:
    """What to be wary of in a trial's last measures and in how it ran, most serious first."""
    return [finding for sign in TRIAL_SIGNS for finding in sign(run, trial)]


def of_data(run: Run) -> list[Finding]:
    """What to be wary of in the data and in how many the measures rest on, most serious first."""
    return [finding for sign in DATA_SIGNS for finding in sign(run)]
