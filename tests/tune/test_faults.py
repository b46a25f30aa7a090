"""What goes wrong in a search, made to happen: each fault with its sentence and exit code."""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from searching import HANG, environment, heed_signals, lines, preftune, start, wait_for

from results.run.listing import open_run
from search_spaces.errors import UserError
from trainables.quickstart.world import rows
from tune.record import claim

SPEC = """
model: quickstart
dataset: {path: ./pairs.jsonl, validation_pairs: 32}
judge: ./judge.py
space:
  learning_rate: {loguniform: [1.0e-4, 4.0e-4]}
  per_device_train_batch_size: {choice: [4, 8]}
training: {max_length: 128, beta: 0.5, loss_type: [sigmoid, sft]}
evaluation: {prompts: 16, max_new_tokens: 24}
budget: {pairs: 144}
search: {trials: 5, scheduler: none, concurrent: 2, seed: 7, stuck_minutes: 0.75}
verify: {finalists: 1, seeds: 1, prompts: 32}
resources: {gpu: 0}
"""

# The quickstart's judge, spoilt for the trials that `faults.json` beside it names: Ray Tune tells a
# trial's name inside of it, and None elsewhere.
JUDGE = """
import json, os, time
from pathlib import Path
from ray.tune import get_context
from trainables.quickstart.judge import judge as exact

def judge(prompts, answers):
    scores, trial = exact(prompts, answers), get_context().get_trial_name()
    with Path(__file__).with_suffix(".log").open("a") as log:
        log.write(f"{trial} {os.getpid()}\\n")
    match json.loads(Path(__file__).with_name("faults.json").read_text()).get(str(trial)):
        case "hang":
            time.sleep(10_000)
        case "die":
            os._exit(3)
        case "raise":
            raise OverflowError("a score is too large")
        case "nan":
            return [float("nan")] * len(scores)
        case "short":
            return scores[:-1]
    return scores
"""


def laid_out(folder: Path, **faults: str) -> Path:
    """Write spec, data and judge, and which trial (`trial_0000="hang"`) gets which fault;

    `None` names preparation and verification.
    """
    (folder / "spec.yaml").write_text(SPEC)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()[:300]))
    (folder / "judge.py").write_text(JUDGE)
    (folder / "faults.json").write_text(json.dumps(faults))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder whose runs share what was prepared."""
    return laid_out(tmp_path_factory.mktemp("faults"))


@pytest.mark.chaos
def test_trials_and_measurements_that_fail_do_so_alone_with_their_cause(place: Path) -> None:
    """Five trials with five faults, two without any; then the measurements on the test split."""
    kinds = ("hang", "die", "raise", "nan", "short")
    faults = {f"trial_000{number}": kind for number, kind in enumerate(kinds)}
    laid_out(place, **faults)
    process = start(place, "run", "spec.yaml", "--name", "bad", "--set", "search.trials=7")
    wait_for(lambda: bool(lines(place / "runs" / "bad" / "decisions.jsonl")), process)
    laid_out(place, **faults, **{"None": "raise"})
    printed = process.communicate(timeout=HANG)[0]
    assert process.returncode == 1 and "Traceback" not in printed, printed
    assert "2 of 2 measurements on the test split failed" in printed
    assert "OverflowError: a score is too large" in printed and "preftune resume bad" in printed
    run = open_run(place / "runs" / "bad")
    assert run.state == "failed" and run.verdict() is None

    laid_out(place)
    preftune(place, "resume", "bad")
    run = open_run(place / "runs" / "bad")
    assert run.state == "done"
    assert [trial.state for trial in run.trials()] == ["failed"] * 5 + ["complete"] * 2
    causes = [
        "no report for 0.75 minutes (search.stuck_minutes)",
        "its process died 3 times, the last time because",
        "judge.py, line 17): OverflowError: a score is too large",
        "scored answer 0 with nan",
        "returned 15 scores for 16 answers",
    ]
    for trial, cause in zip(run.trials(), causes, strict=False):
        assert trial.cause is not None and cause in trial.cause
    shown = preftune(place, "show", "bad", "--trial", "2")
    assert "OverflowError" in shown
    workers = [line.split() for line in (place / "judge.log").read_text().splitlines()]
    # The one that hung was killed and not started again; the one that died had two more processes.
    assert not any(psutil.pid_exists(int(pid)) for name, pid in workers if name == "trial_0000")
    assert [name for name, _ in workers].count("trial_0000") == 1
    assert [name for name, _ in workers].count("trial_0001") == 3
    verdict = run.verdict()
    assert verdict is not None and verdict["finalists"][0]["number"] in (5, 6)
    assert verdict["finalists"][0]["test"]["win_rate"] is not None


def mount(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of its own, of 6 MB."""
    disk, shown = tmp_path / "disk", tmp_path / "storage"
    disk.mkdir()
    shown.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)):
        pytest.skip("mounting a small file system takes root")
    assert mount("--bind", str(disk), str(shown))
    yield shown
    for path in (shown, disk):
        subprocess.run(["umount", "-l", str(path)], capture_output=True, check=False)


@pytest.mark.chaos
def test_full_disk_and_lost_storage_end_the_search_not_its_trials(
    tmp_path: Path, small_disk: Path
) -> None:
    laid_out(tmp_path)
    few = ("--set", "search.trials=3", "--set", "search.concurrent=1")
    where = ("--set", f"storage={small_disk}")
    printed = preftune(tmp_path, "run", "spec.yaml", "--name", "full", *few, *where, code=1)
    assert "No space left on device" in printed
    assert "`preftune resume full --storage storage`" in printed
    folder = small_disk / "full"
    run = open_run(folder)
    assert run.state == "failed" and "No space left on device" in run.info["error"]
    assert [(trial.state, trial.cause) for trial in run.trials()] == [("running", None)]

    assert mount("-o", "remount,size=60m", str(tmp_path / "disk"))
    process = start(tmp_path, "resume", "full", "--storage", str(small_disk))
    wait_for(lambda: bool(lines(folder / "decisions.jsonl")), process)
    subprocess.run(["umount", "-l", str(small_disk)], check=True)
    printed = process.communicate(timeout=HANG)[0]
    assert process.returncode == 1 and "Traceback" not in printed
    assert printed.count("preftune resume full") == 2  # at the start, and in the error
    assert mount("--bind", str(tmp_path / "disk"), str(small_disk))
    trials = open_run(folder).trials()
    assert trials[0].state == "complete"
    assert {trial.state for trial in trials[1:]} <= {"running"}


@pytest.mark.chaos
def test_second_driver_stop_more_trials_and_ctrl_c(place: Path) -> None:
    laid_out(place)
    folder = place / "runs" / "halt"
    one_by_one = ("--set", "search.concurrent=1", "--set", "search.trials=9")
    process = start(place, "run", "spec.yaml", "--name", "halt", *one_by_one)
    wait_for(lambda: bool(lines(folder / "decisions.jsonl")), process)
    refused = preftune(place, "resume", "halt", code=1)
    assert "run halt is running (process" in refused and "preftune stop halt" in refused
    assert "stops at the next rungs" in preftune(place, "stop", "halt")
    printed = process.communicate(timeout=HANG)[0]
    assert process.returncode == 0 and "Traceback" not in printed, printed
    run = open_run(folder)
    assert run.state == "stopped" and run.verdict() is not None
    ended = len(run.trials())
    assert 1 <= ended < 9 and all(
        trial.state != "running" or trial.attrs["paused"] == "stop" for trial in run.trials()
    )
    assert "is not running" in preftune(place, "stop", "halt", code=1)

    known = len(lines(folder / "decisions.jsonl"))
    process = start(place, "resume", "halt", "--trials", "+1")
    wait_for(lambda: len(lines(folder / "decisions.jsonl")) > known, process)
    assert open_run(folder).spec["search"]["trials"] == 10
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=HANG)[0]
    assert process.returncode == 130, printed
    assert "Interrupted. Resume with: preftune resume halt" in printed
    assert "Traceback" not in printed
    assert open_run(folder).state == "interrupted"


@pytest.mark.chaos
def test_search_whose_time_is_up_ends_in_order(place: Path) -> None:
    """Before any trial began: nothing to verify, and the state says that it was cut short."""
    laid_out(place)
    printed = preftune(place, "run", "spec.yaml", "--name", "t", "--set", "search.minutes=1e-9")
    assert "Not verified: its time was up before any trial reached the last rung" in printed
    run = open_run(place / "runs" / "t")
    assert run.state == "stopped" and run.trials() == []


def test_run_folder_is_one_process_s_until_it_ends(tmp_path: Path) -> None:
    code = f"""
import sys, time
from pathlib import Path
from tune.record import claim
lock = claim(Path({str(tmp_path)!r}))
print("claimed", flush=True)
time.sleep(100)
"""
    holder = subprocess.Popen(
        [sys.executable, "-c", code], env=environment(), stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    with holder, holder.stdout:
        assert holder.stdout.readline() == "claimed\n"
        with pytest.raises(UserError, match="is running"):
            claim(tmp_path)
        holder.kill()
    claim(tmp_path).release()


def test_notice_after_the_last_trial_ends_the_search_all_the_same(tmp_path: Path) -> None:
    """Nobody is left to wait for; verification must not begin. A hang-up comes twice."""
    code = """
import os, signal
from tune.cluster.signals import terminable
from tune.cluster.preemption import preemptible
for numbers in ([signal.SIGTERM], [signal.SIGHUP, signal.SIGHUP]):
    try:
        with terminable(), preemptible(print) as preemption:
            for number in numbers:
                os.kill(os.getpid(), number)
            print("searched", preemption.announced)
        print("verifying")
    except KeyboardInterrupt:
        print("interrupted", signal.getitimer(signal.ITIMER_REAL))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=heed_signals,
    )
    assert done.stdout == "searched True\ninterrupted (0.0, 0.0)\n" * 2


@pytest.mark.parametrize("when", ["while Ray runs", "after it"])
def test_ray_does_not_take_sigterm_over(tmp_path: Path, when: str) -> None:
    """Its C++ core would abort the process three seconds after the signal."""
    code = f"""
import os, signal, time
from tune.cluster.connection import connected
from tune.cluster.signals import terminable
with terminable():
    try:
        with connected(None, cpus=1):
            if {when == "while Ray runs"}:
                os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    except KeyboardInterrupt:
        time.sleep(5)
        print("in good order")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "in good order\n" and "SIGTERM" not in done.stderr


@pytest.mark.chaos
def test_preparation_that_keeps_dying_is_told_in_one_sentence(tmp_path: Path) -> None:
    """Its task is started three times; then the command ends with what `run_search` raises."""
    code = """
import os
from pathlib import Path
from tune.cluster.connection import connected
from tune.cluster.shipping import build_on_worker
from tune.run import _sentence
with connected(None, cpus=1) as cluster:
    def build(folder):
        with open("attempts", "a") as file:
            file.write("x")
        os._exit(1)
    try:
        build_on_worker(cluster, build, Path("out"))
    except Exception as error:
        print(_sentence(error, Path("runs/mine")))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert (tmp_path / "attempts").read_text() == "xxx"
    assert done.stdout.startswith("a process of Ray failed"), done.stdout + done.stderr
    assert "preftune resume mine" in done.stdout and "Traceback" not in done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 1


class RayNode:
    """A node of a Ray cluster on this machine, with a folder of its own for temporary files."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        folder.mkdir()
        self.temporary = folder
        self.log = folder / "ray.log"
        command = [str(Path(sys.executable).with_name("ray")), "start", "--block", *arguments]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, "--disable-usage-stats", "--object-store-memory=100000000"],
                # A node that is gone is noticed within seconds instead of half a minute.
                env=environment()
                | {
                    "TMPDIR": str(folder),
                    "RAY_AUTH_MODE": "token",
                    "RAY_health_check_initial_delay_ms": "0",
                    "RAY_health_check_period_ms": "1000",
                    "RAY_health_check_failure_threshold": "3",
                },
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        while "Ray runtime started" not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)

    def kill(self) -> None:
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait()
        for process in family:
            if process.is_running():
                process.kill()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, list[RayNode]]]:
    """The address of a cluster, and its nodes: a head that computes nothing, and two of one CPU."""
    session = Path(tempfile.mkdtemp(dir="/tmp", prefix="ray"))  # its sockets need a short path
    nodes: list[RayNode] = []
    try:
        head = ("--head", "--port=0", "--num-cpus=0", "--include-dashboard=false")
        nodes.append(RayNode(tmp_path / "head", *head, f"--temp-dir={session}"))
        written = session / "ray_current_cluster"  # after Ray has printed that it runs
        while not (written.exists() and written.read_text().strip()):
            assert nodes[0].process.poll() is None, nodes[0].log.read_text()
            time.sleep(0.1)
        address = written.read_text().strip()
        for name in ("first", "second"):
            node = RayNode(tmp_path / name, f"--address={address}", "--num-cpus=1")
            nodes.append(node)
        yield address, nodes
    finally:
        for node in nodes:
            if node.process.poll() is None:
                node.kill()
        shutil.rmtree(session, ignore_errors=True)


@pytest.mark.chaos
def test_trial_of_a_lost_node_goes_on_elsewhere(
    tmp_path: Path, cluster: tuple[str, list[RayNode]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes, a trial on each, and one is killed; what they compute with came through Ray."""
    address, (_, first, second) = cluster
    laid_out(tmp_path)
    at = ("run", "spec.yaml", "--address", address)
    stranger = start(tmp_path, *at, "--name", "stranger")  # without the cluster's token
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    more = ("--set", "budget.pairs=432", "--set", "search.trials=2")
    process = start(tmp_path, *at, "--name", "torn", *more)
    journal = tmp_path / "runs" / "torn" / "study.journal"

    def both_have_a_checkpoint() -> bool:
        if not journal.exists():
            return False
        trials = open_run(journal.parent).trials()
        return len(trials) == 2 and all("checkpoint" in trial.attrs for trial in trials)

    wait_for(both_have_a_checkpoint, process)
    second.kill()
    printed = process.communicate(timeout=HANG)[0]
    assert process.returncode == 0, printed
    assert "Traceback" not in printed and "beats the reference" in printed
    run = open_run(journal.parent)
    assert run.info["hardware"] == {"nodes": 3, "cpus": 2.0, "gpus": 0.0}
    assert [trial.state for trial in run.trials()] == ["complete"] * 2
    assert [trial.attrs.get("restarts", 0) for trial in run.trials()] in ([0, 1], [1, 0])
    for trial in run.trials():  # on from its checkpoint, not from the start
        log = (run.trial_folder(trial.number) / "log.txt").read_text().splitlines()
        first_step = log[0].partition(" step 1 of ")[2]  # verification's seeds have other losses
        assert first_step and sum(first_step in line for line in log) == 1
    got = {
        node: {path.name for path in node.temporary.glob("preftune-*/**/*") if path.is_file()}
        for node in (first, second)
    }
    # The lost node cannot remove what it got; the other one has done so at the end of the run.
    needed = {"model.safetensors", "tokenizer.json", "train.parquet", "train.npz"}
    assert needed <= got[second] and not needed & got[first]

    printed = stranger.communicate(timeout=HANG)[0]
    assert stranger.returncode == 1 and "Traceback" not in printed
    assert "RAY_AUTH_MODE=token" in printed
