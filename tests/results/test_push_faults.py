"""What can fail on the way to the Hub: it passes, or it is one sentence and nothing is tagged."""

import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
from hub import Hub
from publishing import PUBLISHED, TOKEN, draw, published, push, pushed
from run_folder import write_run

from results.run.listing import open_run
from results.run.run import Run
from search_spaces.errors import UserError

pytestmark = [
    # huggingface_hub's own LFS upload passes its HTTP client a parameter by its older name.
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
    pytest.mark.usefixtures("online", "no_waiting"),
]


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time passes at once, for us and for the client; what we wait for is kept."""
    waited: list[float] = []
    monkeypatch.setattr("results.publish.upload.time", SimpleNamespace(sleep=waited.append))
    quick = SimpleNamespace(sleep=lambda seconds: None, time=lambda: 0.0)
    monkeypatch.setattr("huggingface_hub.utils._http.time", quick)
    return waited


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = write_run(tmp_path_factory.mktemp("runs"), "won")
    draw(folder)
    return open_run(folder)


@pytest.fixture
def me(hub: Hub) -> Hub:
    hub.add_token(TOKEN, "me", "write")
    return hub


# Each request of a push, by method and path, and how often it may fail before we give up.
STEPS = [
    ("POST", "/repos/create"),
    ("GET", "/api/models/me/winner(/revision/main)?$"),
    ("GET", "/tree/"),
    ("POST", "/preupload/"),
    ("POST", "/objects/batch"),
    ("PUT", "^/lfs/"),
    ("POST", "/info/lfs/verify"),
    ("POST", "/commit/main"),
    ("GET", "/refs"),
    ("POST", "/tag/"),
]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step[1])
@pytest.mark.parametrize("status", [429, 500, None])
def test_what_passes_is_tried_again(
    me: Hub, run: Run, step: tuple[str, str], status: int | None
) -> None:
    fault = me.fail(*step, status, times=2)
    commit = pushed(me, run)
    assert fault.hits == 2
    repository = me.repository("me/winner")
    assert published(repository) == PUBLISHED and repository.state["tags"] == {"won": commit}
    assert len(repository.history()) == 2


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, r"does not accept the token for me/winner \(401\); .*`hf auth login`"),
        (403, "may not write to me/winner .403: told to fail"),
        (404, "no user or organization for me/winner"),
        (409, "Others were writing to me/winner at the same time"),
        (429, "takes no more requests for now .429"),
        (500, r"refused me/winner \(500: told to fail\); push again later"),
        (None, "Hub at http.* cannot be reached"),
    ],
)
@pytest.mark.parametrize("step", ["/repos/create", "/commit/main", "/tag/"])
def test_what_does_not_pass_is_one_sentence(
    me: Hub, run: Run, step: str, status: int | None, words: str
) -> None:
    if step == "/repos/create" and status == 409:
        step = "/preupload/"  # there it would say that the repository exists already
    me.fail("POST", step, status)
    with pytest.raises(UserError, match=words) as error:
        pushed(me, run)
    said = str(error.value)
    assert "\n" not in said and TOKEN not in said
    left = me.repositories()
    if step == "/repos/create":
        assert left == [] and "exists" not in said
        return
    repository = me.repository("me/winner")
    assert repository.state["tags"] == {}
    if step != "/tag/":
        assert published(repository) == []
        assert "me/winner exists and is still empty: run the same command again" in said
    else:
        assert published(repository) == PUBLISHED
        assert "The files are in me/winner, but not tagged: run the same command again" in said
    me.mend()
    commit = pushed(me, run)
    assert len(me.asked("PUT", "^/lfs/")) == 1, "what had arrived was sent again"
    assert repository.state["tags"] == {"won": commit} and len(repository.history()) == 2


def test_a_cut_upload_goes_on(me: Hub, run: Run) -> None:
    weights = "^/lfs/" + _sha256(run.folder / "best" / "model.safetensors")
    fault = me.fail("PUT", weights, cut_after=20_000)
    with pytest.raises(UserError, match="broke off during an upload to me/winner .*push again"):
        pushed(me, run)
    assert fault.hits > 3 and published(me.repository("me/winner")) == []
    assert me.repository("me/winner").state["tags"] == {}
    me.mend()
    pushed(me, run)
    assert published(me.repository("me/winner")) == PUBLISHED
    assert [r.status for r in me.asked("PUT", "^/lfs/")].count(200) == 1


def test_the_answer_to_a_commit_is_lost(me: Hub, run: Run) -> None:
    """The commit was made, and the client cannot know: no second one, and the tag all the same."""
    fault = me.fail("GET", "/tree/", 500, times=1)
    fault.hits = 1  # let the first look at the empty repository through
    done = push(run, "me/winner", token=TOKEN, endpoint=me.endpoint).uploaded
    assert done is not None and done.committed and done.tag == "won"
    assert len(me.repository("me/winner").history()) == 2


def test_somebody_commits_in_between(me: Hub, run: Run) -> None:
    """The commit names its parent: the Hub refuses it, and a second look finds theirs."""
    repository = me.create("me/winner")
    before = Path(me.root / "raced")

    original = me.fault

    def racing(method: str, path: str) -> object:
        if path.endswith("/commit/main") and not before.exists():
            before.touch()
            repository.commit({"cat.png": b"cat"}, title="In between")
        return original(method, path)

    me.fault = racing  # type: ignore[method-assign, assignment]
    commit = pushed(me, run)
    assert [c["title"] for _, c in repository.history()][1] == "In between"
    assert "cat.png" in repository.files() and repository.state["tags"] == {"won": commit}


def test_other_content_than_was_sent_is_never_tagged(
    me: Hub, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hub.repositories import Repository

    commit = Repository.commit

    def careless(self: Repository, written: object, *args: object, **options: object) -> str:
        kept = {k: v for k, v in dict(written).items() if k != "config.json"}  # type: ignore[call-overload]
        return commit(self, kept, *args, **options)

    monkeypatch.setattr(Repository, "commit", careless)
    with pytest.raises(UserError, match="is not what was sent: config.json differs. It is not"):
        pushed(me, run)
    assert me.repository("me/winner").state["tags"] == {}
    monkeypatch.undo()


def test_the_hub_is_waited_for_as_long_as_it_asks(
    me: Hub, run: Run, no_waiting: list[float]
) -> None:
    me.fail("POST", "/commit/main", 429, headers={"Retry-After": "30"}, times=1)
    pushed(me, run)
    assert no_waiting == [30.0]
    me.fail("POST", "/repos/create", 429, headers={"Retry-After": "3600"})
    with pytest.raises(UserError, match="takes no more requests for now"):
        pushed(me, run)
    assert no_waiting == [30.0]


def test_who_may_not_write(me: Hub, run: Run) -> None:
    me.add_token("hf_reader", "me", "read")
    for token, words in (
        ("hf_unknown", "does not accept the token"),
        ("hf_reader", "role `write`"),
    ):
        with pytest.raises(UserError, match=words) as error:
            push(run, "me/winner", token=token, endpoint=me.endpoint)
        assert token not in str(error.value)
    me.add_token("hf_others", "others")
    with pytest.raises(UserError, match="may not write to others/winner"):
        pushed(me, run, "others/winner")
    with pytest.raises(UserError, match="no user or organization for nobody/winner"):
        pushed(me, run, "nobody/winner")
    assert me.repositories() == []


def test_a_server_that_repeats_the_token_is_not_quoted(me: Hub, run: Run) -> None:
    me.fail("POST", "/commit/main", 400, message=f"bad Authorization: Bearer {TOKEN}")
    with pytest.raises(UserError, match=r"bad Authorization: Bearer \*\*\*") as error:
        pushed(me, run)
    assert TOKEN not in str(error.value)


def test_no_token_bad_name_offline_and_no_network(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_waiting: list[float]
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(UserError, match="cannot be reached .*; check the connection"):
        push(run, "me/winner", token=TOKEN, endpoint=nowhere)
    assert no_waiting == [1.0, 4.0, 15.0]
    with pytest.raises(UserError, match="not the name of a repository"):
        push(run, "a/b/c", token=TOKEN, endpoint=nowhere)
    for address in ("http://localhost:port", "http://[::1"):
        with pytest.raises(UserError, match="address 'http://.* is not valid .*; fix or unset"):
            push(run, "me/winner", token=TOKEN, endpoint=address)
    for token in ("hf_\xe9", "hf_a\nb", "hf_a b"):
        with pytest.raises(UserError, match="holds characters that no token has") as error:
            push(run, "me/winner", token=token, endpoint=nowhere)
        assert token not in str(error.value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set; unset it"):
        push(run, "me/winner", token=TOKEN, endpoint=nowhere)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(UserError, match="no Hugging Face token .* `hf auth login`"):
        push(run, "me/winner")


def test_a_page_instead_of_the_hub(me: Hub, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that answers everything with its own login page."""
    from hub.server import Handler

    def page(self: Handler) -> None:
        content = b"<html>Log in</html>"
        self._drain()
        self._start(200, len(content), {"Content-Type": "text/html"})
        self._write(iter([content]))

    monkeypatch.setattr(Handler, "_dispatch", page)
    with pytest.raises(UserError, match=r"answers at http.* is not a Hub .*; fix HF_ENDPOINT or"):
        pushed(me, run)


def _sha256(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()
