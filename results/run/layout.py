"""The layout of a run folder: file names, format and states, for its reader and its writer.

docs/run_folder.md says what each file holds.
"""

FORMAT = 1

INFO = "run.json"
SPEC = "spec.yaml"
DATA_REPORT = "data_report.json"
JOURNAL = "study.journal"
DECISIONS = "decisions.jsonl"
VERDICT = "verdict.json"
FULL_VERDICT = "full.json"
REPORT = "report.html"
VOTES = "votes.jsonl"
STOP = "stop"  # its presence ends the search after the next rungs
LOCK = ".driver.lock"  # held by the process that drives the run, and by nobody once it is gone

TRIALS = "trials"  # and in it a folder for each trial, with these files
MEASURES = "measures.jsonl"
DELTAS = "deltas.npz"
SAMPLES = "samples.jsonl"
LOG = "log.txt"

TUNE = "tune"  # Ray Tune's experiment folders, with the checkpoints of the trials
VERIFY = "verify"
BEST = "best"
FULL = "full"
PREPARED = "prepared"  # beside the run folders: what several searches share

# States of a run in which a process drives it, and those in which the verdict is its last word.
ACTIVE = ("preparing", "searching", "verifying")
ENDED = ("done", "stopped")
# States of a trial, best first, as the leaderboard shows them.
STATES = ("complete", "stopped", "running", "paused", "infeasible", "failed", "waiting")
