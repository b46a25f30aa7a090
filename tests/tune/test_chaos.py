"""Searches whose driver is killed at random moments, with what that damages.

The moments come from a seed, printed with every failure; PREFTUNE_CHAOS_SEED repeats them.
"""

import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faulty import searched, settings, trained
from searching import drives, end_with_family, preftune, start, story, wait_for

from results.run.listing import open_run
from results.run.run import Run
from tune.asha import promoted

pytestmark = pytest.mark.chaos

# Pairs of one trial that a dead driver costs at most, on average: a tenth of the budget of 216, in
# whole steps, and what a worker trains until Ray's daemons have noticed.
COST = 36


def interrupted_at_random(
    place: Path, name: str, kills: int, span: float, chance: random.Random, *values: str
) -> Iterator[Run]:
    """Start a search, and kill it as often as asked, each time within `span` seconds of training.

    Yields the run after each kill, until it has ended before the next.
    """
    storage = place / "runs"
    for value in values:
        storage = Path(value.removeprefix("storage=")) if value.startswith("storage=") else storage
    counted = place / "pairs.log"
    for number in range(kills):
        first = ("run", "spec.yaml", "--name", name, *settings(*values))
        process = start(place, *(("resume", name, "--storage", str(storage)) if number else first))
        # Not before: a worker that the last driver left behind may train for another moment.
        wait_for(lambda process=process: drives(process, storage / name), process)
        before = counted.stat().st_size if counted.exists() else 0

        def training(before: int = before) -> bool:
            return counted.exists() and counted.stat().st_size > before

        wait_for(training, process)
        time.sleep(chance.uniform(0, span))
        if process.poll() is not None:
            assert process.returncode == 0, process.communicate()[0]
            return
        if number % 2:
            end_with_family(process)
        else:  # the driver alone: Ray's daemons notice by themselves
            process.kill()
            printed = process.communicate()[0]
            assert f"resume     preftune resume {name}" in printed, printed  # from the start
        run = open_run(name, storage)
        assert run.state == "crashed"
        yield run


def test_six_dead_drivers_change_nothing_with_one_worker(
    undisturbed_search: tuple[Path, Run, int], chance: random.Random
) -> None:
    place, *_ = undisturbed_search
    trained(place)
    trials = "search.trials=12"
    preftune(place, "run", "spec.yaml", "--name", "calm", *settings(trials))
    undisturbed, pairs = open_run(place / "runs" / "calm"), searched(trained(place))
    span = undisturbed.info["seconds"]["search"] / 8
    kills = list(interrupted_at_random(place, "torn", 6, span, chance, trials))
    assert len(kills) == 6
    preftune(place, "resume", "torn")
    torn = open_run(place / "runs" / "torn")
    assert torn.state == "done" and torn.missing() == []
    assert story(torn) == story(undisturbed)
    again = searched(trained(place)) - pairs
    print(f"{again} pairs trained again")  # noqa: T201
    assert again <= COST * len(kills)


def newest_checkpoint(run: Run) -> Path | None:
    """Return the checkpoint that an unfinished trial would go on from."""
    found = [trial.attrs.get("checkpoint") for trial in run.trials() if trial.state == "running"]
    return run.folder / found[0] if found and found[0] else None


def prepared(run: Run, stage: str) -> Path:
    return run.storage / "prepared" / str(run.info["prepared"][stage])


def cut(path: Path) -> None:
    """Lose the second half of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def at_checkpoint(harm: Callable[[Path], object], name: str) -> Callable[[Run], bool]:
    def damage(run: Run) -> bool:
        checkpoint = newest_checkpoint(run)
        if checkpoint is None or not (checkpoint / name).exists():
            return False  # killed before its trial had one
        harm(checkpoint / name)
        return True

    return damage


def half_a_line(name: str) -> Callable[[Run], None]:
    def damage(run: Run) -> None:
        with (run.folder / name).open("a") as file:
            file.write('{"time": "2026-')

    return damage


def leftovers(run: Run) -> None:
    """Leave what a write that was cut short leaves: temporary files and half a folder."""
    (run.folder / ".run.json.x1").write_text("{")
    (run.storage / "prepared" / ".data-0000.x2").mkdir(exist_ok=True)
    (run.folder / "stop").write_text("")  # asked for before the crash: the resumed one was not


AT_CHECKPOINT: dict[str, Callable[[Run], object]] = {
    "a checkpoint cut short": at_checkpoint(cut, "model.safetensors"),
    "a checkpoint with another bit": at_checkpoint(flip, "model.safetensors"),
    "a checkpoint without its checksums": at_checkpoint(Path.unlink, "meta.json"),
    "an optimizer state cut short": at_checkpoint(cut, "optimizer.pt"),
    "leftovers of a write": leftovers,
}
ELSEWHERE: dict[str, Callable[[Run], object]] = {
    "half a line of the journal": half_a_line("study.journal"),
    "half a line of the decisions": half_a_line("decisions.jsonl"),
    "another bit in the reference's log-probs": lambda run: flip(
        prepared(run, "reference") / "train.npz"
    ),
    "training pairs cut short": lambda run: cut(prepared(run, "data") / "train.parquet"),
    "lost answers of the reference": lambda run: (
        prepared(run, "answers") / "validation.jsonl"
    ).unlink(),
}


def test_what_a_crash_damages_is_noticed_and_worked_round(
    undisturbed_search: tuple[Path, Run, int], chance: random.Random
) -> None:
    """Five crashes, each with two kinds of damage; the search ends as if nothing was."""
    place, undisturbed, _ = undisturbed_search
    pairs = list(
        zip(
            chance.sample(list(AT_CHECKPOINT.items()), 5),
            chance.sample(list(ELSEWHERE.items()), 5),
            strict=True,
        )
    )
    span = undisturbed.info["seconds"]["search"] / 8
    storage = place / "worn"  # what is prepared there is damaged too
    shutil.copytree(place / "runs" / "prepared", storage / "prepared")
    harmed = []
    crashes = interrupted_at_random(place, "worn", len(pairs), span, chance, f"storage={storage}")
    for pair, run in zip(pairs, crashes, strict=False):
        harmed += [name for name, damage in pair if damage(run) is not False]
    print(f"damaged: {harmed}")  # noqa: T201
    assert set(ELSEWHERE) < set(harmed) and len(harmed) >= 8
    preftune(place, "resume", "worn", "--storage", str(storage))
    worn = open_run("worn", storage)
    assert worn.state == "done"
    assert story(worn) == story(undisturbed)


def test_two_workers_and_dead_drivers(
    undisturbed_search: tuple[Path, Run, int], chance: random.Random
) -> None:
    """Which worker reports first is chance. What was decided follows from what was known."""
    place, *_ = undisturbed_search
    trained(place)
    # Another trial may win, so all are to be good ones: winners differ by what chance measures.
    good = ("space.learning_rate={loguniform: [2.0e-4, 4.0e-4]}", "space.beta={choice: [0.5, 1.0]}")
    values = ("search.concurrent=2", *good)
    preftune(place, "run", "spec.yaml", "--name", "two", *settings(*values))
    pairs = searched(trained(place))
    calm = open_run(place / "runs" / "two")
    finished: set[int] = set()
    total: Counter[str] = Counter()
    kills = 0
    for _ in interrupted_at_random(place, "pair", 3, 6.0, chance, *values):
        kills += 1
        seen = trained(place)
        again = {number for number in finished if f"trial_{number:04d}" in seen}
        assert again == set()
        total += seen
        trials = open_run(place / "runs" / "pair").trials()
        finished = {trial.number for trial in trials if trial.state != "running"}
    preftune(place, "resume", "pair")
    total += trained(place)
    run = open_run(place / "runs" / "pair")
    assert run.state == "done"
    known: dict[int, list[float]] = {}
    for decision in run.decisions():
        earlier = known.setdefault(decision["rung"], [])
        assert decision["others"] == earlier
        if decision["decision"] == "infeasible":
            continue
        if decision["decision"] in ("continue", "stop"):
            on = promoted(decision["value"], decision["others"], decision["direction"])
            assert decision["decision"] == ("continue" if on else "stop")
        earlier.append(decision["value"])
    best, before = run.verdict() or {}, calm.verdict() or {}
    assert best["passing"] and before["passing"]
    entry = next(f for f in before["finalists"] if f["number"] == before["winner"])
    own = next(f for f in best["finalists"] if f["number"] == best["winner"])
    assert entry["interval"][0] <= own["difference"] <= entry["interval"][1]
    # One worker's search may take another turn than the other's, so pairs are compared by trials.
    assert searched(total) <= max(pairs, sum(t.pairs for t in run.trials())) + 2 * COST * kills


def test_driver_that_dies_before_and_after_the_search(
    undisturbed_search: tuple[Path, Run, int], chance: random.Random
) -> None:
    place, undisturbed, _ = undisturbed_search
    storage = place / "ends"  # nothing is prepared there
    words = ("run", "spec.yaml", "--name", "ends", *settings(f"storage={storage}"))
    for stage, seconds in (("preparing", 12), ("verifying", 4)):
        process = start(place, *words)

        def there(stage: str = stage) -> bool:
            path = storage / "ends" / "run.json"
            return path.exists() and json.loads(path.read_text())["state"] == stage

        wait_for(there, process)
        time.sleep(chance.uniform(0, seconds))
        end_with_family(process)
        words = ("resume", "ends", "--storage", str(storage))
    preftune(place, *words)
    assert story(open_run("ends", storage)) == story(undisturbed)
