"""Checkpoints in object storage: real searches, with moto's S3 server on this machine.

moto runs in an environment of its own (see the Makefile) and in a process of its own, so that it
can be taken away. Its credentials are dummies.
"""

import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import Trial
from publishing import push
from pyarrow import fs
from run_folder import write_model, write_run
from searching import HANG, end_with_family, lines, preftune, start, story, wait_for
from test_search import TINY

from results.run.listing import open_run
from results.run.run import Run
from search_spaces.errors import UserError
from search_spaces.spec import Spec, validate
from trainables.artifacts import seal
from tune.cluster.checkpoint_storage import Checkpoints, NotReached, opened, settle, trouble
from tune.record import Record, create

SECRET = "planted+secret/key"
MOTO = Path(sys.prefix) / "moto" / "bin" / "moto_server"
# All of its configurations beat the reference clearly, and each is trained again often enough to
# show it alone: whichever finalist is left, there is a winner.
GOOD = (
    TINY.replace("[1.0e-4, 4.0e-4]", "[2.5e-4, 4.0e-4]")
    .replace("{loguniform: [0.3, 1.0]}", "{uniform: [0.3, 0.5]}")
    .replace("pairs: 144", "pairs: 216")
    .replace("prompts: 128", "prompts: 256")
    .replace("seeds: 1", "seeds: 2")
)
pytestmark = [
    pytest.mark.skipif(not MOTO.exists(), reason="`make test` brings the S3 server"),
]


@dataclass
class Server:
    """An S3 server that holds one bucket, and a client of it."""

    process: subprocess.Popen[bytes]
    address: str

    def files(self, place: str = "bucket") -> dict[str, bytes]:
        """Return every file below a place, by its path in the bucket."""
        client, root = fs.FileSystem.from_uri(f"s3://{place}")
        found = client.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True))
        read: dict[str, bytes] = {}
        for info in found:
            if info.is_file:
                with client.open_input_stream(info.path) as stream:
                    read[info.path.partition("/")[2]] = stream.read()
        return read


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve(**environment: str) -> Server:
    port = free_port()
    process = subprocess.Popen(
        [str(MOTO), "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"PATH": "", **environment},
    )
    deadline = time.monotonic() + 60
    while process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return Server(process, f"http://127.0.0.1:{port}")
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    raise AssertionError(f"the S3 server ended with {process.returncode}")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that this environment's credentials and endpoint lead to."""
    running = serve()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ACCESS_KEY_ID", "dummy")
        environment.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        environment.setenv("AWS_ENDPOINT_URL", running.address)
        client, _ = fs.FileSystem.from_uri("s3://bucket?allow_bucket_creation=true")
        client.create_dir("bucket")
        yield running
    running.process.send_signal(signal.SIGCONT)
    running.process.kill()
    running.process.wait()


def tiny(storage: Path, checkpoints: str | None) -> Spec:
    return validate(
        {
            "model": "quickstart",
            "dataset": {"path": "quickstart"},
            "judge": "quickstart",
            "space": {"beta": {"uniform": [0.1, 1.0]}},
            "storage": str(storage),
            "checkpoints": checkpoints,
        }
    )


def settled(tmp_path: Path, name: str, checkpoints: str) -> Record:
    """Return the record of a run that may keep its checkpoints there."""
    spec = tiny(tmp_path / "runs", checkpoints)
    record = create(spec, name, True, "test")
    settle(spec, record)
    return record


def stored(checkpoints: Checkpoints, path: str, folder: Path) -> str:
    """Write a checkpoint as a trial does; return its name."""
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights of " + path.encode())
    seal(folder, step=3)
    return checkpoints.add(folder, path)


@pytest.mark.parametrize("query", ["", "?region=eu-north-1"])
def test_checkpoint_is_named_fetched_checked_and_removed(
    server: Server, tmp_path: Path, query: str
) -> None:
    name = "named" + query[-1:]
    record = settled(tmp_path, name, f"s3://bucket/of/50%25/a%20unit{query}")
    checkpoints = Checkpoints(record)
    first = stored(checkpoints, "01/trial_0003/checkpoint_000000", tmp_path / "first")
    last = stored(checkpoints, "01/trial_0003/checkpoint_000001", tmp_path / "last")
    other = stored(checkpoints, "02/trial_0004_a1b2/checkpoint_000000", tmp_path / "other")
    path = f"of/50%25/a%20unit/{name}/01/trial_0003/checkpoint_000000"
    assert first == f"s3://bucket/{path}{query}"
    assert unquote(f"{path}/meta.json") in server.files()
    assert checkpoints.attempts() == 2

    with opened(last) as folder:
        content = (folder / "model.safetensors").read_bytes()
        assert content == b"weights of 01/trial_0003/checkpoint_000001"
    assert not folder.exists()  # a copy, and gone
    assert trouble(last) is None

    seen = []
    checkpoints.remove(lambda number, name: bool(seen.append((number, name))) or name == first)
    assert sorted(seen) == sorted([(3, first), (3, last), (4, other)])
    assert trouble(last) is None
    gone = trouble(first)
    assert gone is not None and "checkpoint_000000 is not complete (meta.json is missing)" in gone

    spoilt = f"{checkpoints.root}/02/trial_0004_a1b2/checkpoint_000000/model.safetensors"
    with checkpoints.file_system.open_output_stream(spoilt) as stream:
        stream.write(b"others")
    found = trouble(other)
    assert found is not None and found.endswith(
        "model.safetensors has changed since it was written"
    )
    assert "trial_0004_a1b2/checkpoint_000000" in found


def test_own_folder_and_a_shared_one_are_used_where_they_are(tmp_path: Path) -> None:
    record = create(tiny(tmp_path / "runs", None), "own", True, "test")
    settle(tiny(tmp_path / "runs", None), record)
    checkpoints = Checkpoints(record)
    assert "checkpoints" not in record.info and checkpoints.attempts() == 0
    name = stored(checkpoints, "01/trial_0000/checkpoint_000000", tmp_path / "one")
    assert name == "tune/01/trial_0000/checkpoint_000000"  # which a moved run folder still finds
    with opened(str(record.folder / name)) as folder:
        assert folder == record.folder / name

    shared = Checkpoints(settled(tmp_path, "away", str(tmp_path / "shared")))
    name = stored(shared, "01/trial_0000/checkpoint_000000", tmp_path / "two")
    assert name == str(tmp_path / "shared" / "away" / "01" / "trial_0000" / "checkpoint_000000")
    shared.remove(lambda number, found: found == name)
    assert not Path(name).exists() and Path(name).parent.exists()


def test_credentials_stay_in_the_environment(server: Server, tmp_path: Path) -> None:
    """Ray pickles the file system into its own files and sends it to its workers."""
    checkpoints = Checkpoints(settled(tmp_path, "pickled", "s3://bucket/of/unit"))
    sent = pickle.dumps(checkpoints.file_system)
    assert SECRET.encode() not in sent and b"dummy" not in sent
    again = pickle.loads(sent)
    assert again.get_file_info("bucket").type == fs.FileType.Directory
    assert isinstance(again, fs.S3FileSystem)  # Ray uploads to one without threads


def test_nothing_of_another_run_is_touched(server: Server, tmp_path: Path) -> None:
    record = settled(tmp_path / "mine", "same", "s3://bucket/of/two")
    mine = Checkpoints(record)
    stored(mine, "01/trial_0000/checkpoint_000000", tmp_path / "one")
    before = server.files()
    with pytest.raises(UserError, match=r"s3://bucket/of/two/same holds 2 files of another run"):
        settled(tmp_path / "theirs", "same", "s3://bucket/of/two")
    Checkpoints(settled(tmp_path / "theirs", "sam", "s3://bucket/of/two")).remove(lambda *_: True)
    settle(tiny(tmp_path, "s3://bucket/of/two"), record)  # a resumed run knows its own
    assert server.files() == before


@pytest.fixture
def strict(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that knows nobody's credentials."""
    running = serve(INITIAL_NO_AUTH_ACTION_COUNT="0")
    monkeypatch.setenv("AWS_ENDPOINT_URL", running.address)
    yield running
    running.process.kill()
    running.process.wait()


def refusal(tmp_path: Path, checkpoints: str) -> str:
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        settled(tmp_path, "refused", checkpoints)
    assert time.monotonic() - began < 15
    told = str(caught.value)
    assert "\n" not in told and told.endswith(
        f"then resume with `preftune resume refused --storage {tmp_path / 'runs'}`"
    )
    assert SECRET not in told
    return told


def test_place_that_cannot_be_used_is_told_at_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = server.files()
    missing = refusal(tmp_path / "a", "s3://no-such-bucket/x")
    assert "s3://no-such-bucket/x/refused cannot be reached (Bucket 'no-such-bucket' not" in missing
    unknown = refusal(tmp_path / "b", "s3://bucket/x?regoin=eu-north-1")
    assert "Unexpected query parameter in S3 URI: 'regoin'" in unknown
    (tmp_path / "file").write_text("")
    blocked = refusal(tmp_path / "c", str(tmp_path / "file"))
    assert "check that it is a folder in which you may write" in blocked
    server.process.send_signal(signal.SIGSTOP)  # it takes connections and never answers
    hanging = refusal(tmp_path / "d", "s3://bucket/x")
    server.process.send_signal(signal.SIGCONT)
    assert "NETWORK_CONNECTION: Operation too slow" in hanging
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    down = refusal(tmp_path / "e", "s3://bucket/x")
    assert "Could not connect to server" in down
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.address)
    assert server.files() == before
    for folder in "abcde":
        assert "checkpoints" not in Record(tmp_path / folder / "runs" / "refused").info


def test_refused_credentials_are_told_without_them(strict: Server, tmp_path: Path) -> None:
    told = refusal(tmp_path, "s3://bucket/x")
    assert "s3://bucket/x/refused" in told and "credentials in the environment" in told
    assert any(word in told for word in ("ACCESS_DENIED", "INVALID_ACCESS_KEY_ID"))


def test_command_ends_in_that_one_sentence(server: Server, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    at = ("--set", "checkpoints=s3://no-such-bucket/x")
    printed = preftune(tmp_path, "run", "tiny.yaml", "--name", "none", *at, code=1)
    where, resume, sentence = printed.strip().splitlines()
    assert where.split() == ["run", "runs/none"]
    assert resume.split(maxsplit=1) == ["resume", "preftune resume none"]
    assert "preftune resume none`" in sentence
    run = open_run(tmp_path / "runs" / "none")
    assert run.state == "failed" and run.info["error"] == sentence


def test_checkpoint_that_cannot_be_fetched_is_no_damage(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is out of reach now may be sound: a trial that began again would have lost its work."""
    checkpoints = Checkpoints(settled(tmp_path, "far", "s3://bucket/of/unit"))
    name = stored(checkpoints, "01/trial_0000/checkpoint_000000", tmp_path / "one")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(NotReached, match="checkpoint_000000 cannot be reached"):
        trouble(name)


def test_kept_trial_is_pushed_out_of_the_bucket(server: Server, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "runs", "halted", state="interrupted")
    checkpoints = Checkpoints(settled(tmp_path / "other", "pushed", "s3://bucket/of/unit"))
    path = "01/trial_0004/checkpoint_000000"
    name = stored(checkpoints, path, tmp_path / "weights")
    journal = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    study = optuna.load_study(study_name="search", storage=journal)
    Trial(study, study.trials[4]._trial_id).set_user_attr("checkpoint", name)
    model, out = tmp_path / "model", tmp_path / "out"
    write_model(model)
    with pytest.raises(UserError, match="cannot be published: .* has no config.json"):
        push(open_run(folder), str(out), trial=4, force=True)
    fs.copy_files(
        str(model),
        f"{checkpoints.root}/{path}",
        destination_filesystem=checkpoints.file_system,
        use_threads=False,
    )
    push(open_run(folder), str(out), trial=4, force=True)
    weights = "model.safetensors"
    assert (out / weights).read_bytes() == (model / weights).read_bytes()
    checkpoints.remove(lambda *_: True)
    with pytest.raises(UserError, match=f"cannot be published: {name} is gone"):
        push(open_run(folder), str(tmp_path / "again"), trial=4, force=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the spec; its runs share what was prepared."""
    folder = tmp_path_factory.mktemp("searches")
    (folder / "tiny.yaml").write_text(GOOD)
    return folder


@pytest.fixture(scope="module")
def on_disk(server: Server, place: Path) -> Run:
    """The search that all others here are compared with."""
    preftune(place, "run", "tiny.yaml", "--name", "disk")
    return open_run(place / "runs" / "disk")


IN_BUCKET = ("--set", "checkpoints=s3://bucket/of/searches")


@pytest.fixture(scope="module")
def in_bucket(on_disk: Run, place: Path) -> Run:
    """The same search, with its checkpoints in the bucket."""
    preftune(place, "run", "tiny.yaml", "--name", "remote", *IN_BUCKET)
    return open_run(place / "runs" / "remote")


def weights(server: Server, run: str) -> set[str]:
    """Return the checkpoints of a run whose weights are in the bucket."""
    held = server.files(f"bucket/of/searches/{run}")
    return {f"s3://bucket/{Path(name).parent}" for name in held if name.endswith(".safetensors")}


@pytest.mark.chaos
def test_search_in_a_bucket_is_the_one_on_disk(
    server: Server, on_disk: Run, in_bucket: Run
) -> None:
    assert in_bucket.state == "done" and in_bucket.missing() == []
    assert story(in_bucket) == story(on_disk)
    assert in_bucket.info["checkpoints"] == "s3://bucket/of/searches/remote"
    assert not (in_bucket.folder / "tune").exists()
    # Weights of the two finalists alone, nothing to train on from, and TensorBoard's events.
    verdict = in_bucket.verdict()
    assert verdict is not None and verdict["passing"]
    finalists = [in_bucket.trial(f["number"]) for f in verdict["finalists"]]
    assert weights(server, "remote") == {f.attrs["checkpoint"] for f in finalists}
    held = server.files("bucket/of/searches/remote")
    assert not any(name.endswith("optimizer.pt") for name in held)
    assert any("events.out.tfevents" in name for name in held)
    best = (in_bucket.folder / "best" / "model.safetensors").read_bytes()
    assert best == (on_disk.folder / "best" / "model.safetensors").read_bytes()
    assert best in held.values()
    written = [path.read_bytes() for path in in_bucket.folder.rglob("*") if path.is_file()]
    for content in [*written, *held.values()]:  # Ray writes its pickles into JSON in hexadecimal
        assert SECRET.encode() not in content and SECRET.encode().hex().encode() not in content


@pytest.mark.chaos
def test_warm_start_takes_its_weights_from_bucket_to_bucket(
    server: Server, in_bucket: Run, place: Path
) -> None:
    """No trial of its own: what it verifies and hands over are the earlier run's."""
    sets = ("--set", "search.warm_start=remote", "--set", "search.minutes=1e-9")
    preftune(place, "run", "tiny.yaml", "--name", "warm", *sets, *IN_BUCKET)
    warm = open_run(place / "runs" / "warm")
    verdict = in_bucket.verdict()
    assert verdict is not None
    ours = {
        f"s3://bucket/of/searches/warm/warm_start/trial_{f['number']:04d}/checkpoint_000000"
        for f in verdict["finalists"]
    }
    assert ours == {t.attrs["checkpoint"] for t in warm.trials() if "checkpoint" in t.attrs}
    assert weights(server, "warm") == ours
    best = (warm.folder / "best" / "model.safetensors").read_bytes()
    assert best == (in_bucket.folder / "best" / "model.safetensors").read_bytes()


@pytest.mark.chaos
def test_damaged_finalist_is_left_out_and_the_next_one_handed_over(
    server: Server, in_bucket: Run, place: Path
) -> None:
    verdict = in_bucket.verdict()
    assert verdict is not None
    first, second = (f["number"] for f in verdict["finalists"])
    client, path = fs.FileSystem.from_uri(in_bucket.trial(first).attrs["checkpoint"])
    with client.open_output_stream(f"{path}/model.safetensors") as stream:
        stream.write(b"others")
    Record(in_bucket.folder).update(state="interrupted")
    printed = preftune(place, "resume", "remote")
    assert f"trial {first}" in printed and "model.safetensors has changed" in printed
    again = open_run(in_bucket.folder).verdict()
    assert again is not None and again["winner"] == second
    kept = server.files("bucket/of/searches/remote")
    assert (in_bucket.folder / "best" / "model.safetensors").read_bytes() in kept.values()


def first_steps(run: Run, number: int) -> int:
    """Return how often a trial began from its start, verification's other seeds aside."""
    log = (run.trial_folder(number) / "log.txt").read_text().splitlines()
    first = log[0].partition(" step 1 of ")[2]
    assert first
    return sum(first in line for line in log)


@pytest.mark.chaos
def test_killed_driver_s_trials_go_on_from_the_bucket(
    server: Server, on_disk: Run, place: Path
) -> None:
    folder = place / "runs" / "torn"
    process = start(place, "run", "tiny.yaml", "--name", "torn", *IN_BUCKET)
    wait_for(lambda: bool(lines(folder / "decisions.jsonl")), process)
    end_with_family(process)
    crashed = open_run(folder)
    assert crashed.state == "crashed" and crashed.trials()[-1].state == "running"
    assert crashed.trials()[-1].attrs["checkpoint"].startswith("s3://bucket/of/searches/torn/01/")
    preftune(place, "resume", "torn")
    torn = open_run(folder)
    assert story(torn) == story(on_disk)
    assert first_steps(torn, crashed.trials()[-1].number) == 1
    verdict = torn.verdict()
    assert verdict is not None
    finalists = [torn.trial(f["number"]) for f in verdict["finalists"]]
    assert weights(server, "torn") == {f.attrs["checkpoint"] for f in finalists}


@pytest.mark.chaos
def test_server_that_hangs_ends_the_search_not_its_trials(
    server: Server, on_disk: Run, place: Path
) -> None:
    folder = place / "runs" / "gone"
    process = start(place, "run", "tiny.yaml", "--name", "gone", *IN_BUCKET)
    wait_for(lambda: bool(lines(folder / "decisions.jsonl")), process)
    server.process.send_signal(signal.SIGSTOP)
    printed = process.communicate(timeout=HANG)[0]
    server.process.send_signal(signal.SIGCONT)
    assert process.returncode == 1 and "Traceback" not in printed, printed
    sentence = printed.strip().splitlines()[-1]
    assert "s3://bucket/of/searches" in sentence and sentence.endswith("`preftune resume gone`")
    gone = open_run(folder)
    assert gone.state == "failed" and gone.info["error"] == sentence
    assert {trial.state for trial in gone.trials()} <= {"complete", "stopped", "running"}
    preftune(place, "resume", "gone")
    assert story(open_run(folder)) == story(on_disk)
    assert first_steps(open_run(folder), gone.trials()[-1].number) == 1
