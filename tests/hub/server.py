"""The Hub's HTTP protocol over repositories on the disk.

Answers follow what the Hub's clients read: status, `X-Error-Code`, `X-Repo-Commit`, `ETag`, `Link`.
Files kept by LFS are redirected to another host, as the Hub does to its CDN, so that a test notices
a client that would send its token there.
"""

import base64
import hashlib
import json
import re
import shutil
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from hub.cards import validated
from hub.faults import Fault
from hub.repositories import MAIN, Blobs, File, NoSuchRevision, Repository

PIECE = 64 * 1024  # bytes read or written at once
REPO = r"(?P<repo>[\w.-]+(?:/[\w.-]+)?)"
API = rf"/api/(?P<kind>models|datasets)/{REPO}"
PAGE = rf"/(?:(?P<kind>datasets)/)?{REPO}"


@dataclass(frozen=True)
class Token:
    """Whose token it is, and what it allows: `read` or `write`."""

    user: str
    role: str
    orgs: tuple[str, ...] = ()

    def owns(self, name: str) -> bool:
        """Tell whether a repository stands under the user or one of their organizations."""
        return name.split("/")[0] in (self.user, *self.orgs)


@dataclass
class Request:
    """One request, for assertions about what a client did."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    status: int | None = None  # of the answer; None where the connection was cut

    @property
    def token(self) -> str | None:
        """The token that came with it."""
        return self.headers.get("authorization", "").removeprefix("Bearer ") or None


class Refusal(Exception):
    """An answer that is not what the client wanted."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        headers: dict[str, str] | None = None,
        **body: Any,
    ) -> None:
        self.status, self.message, self.body = status, message, body
        self.headers = {"X-Error-Message": message, **(headers or {})}
        if code:
            self.headers["X-Error-Code"] = code


class Moved(Exception):
    """The repository has another name by now."""


class Cut(Exception):
    """The connection is to break."""


class Hub(ThreadingHTTPServer):
    """A Hub that listens on a free port of 127.0.0.1, in a thread, for as long as `with` lasts.

    Attributes:
        root: the folder that its repositories are kept in.
        blobs: the content of their files.
        requests: every request so far, in order.
        page_size: entries of a tree that one answer holds.
        part_size: bytes of one part of a large upload; what is larger is asked for in parts.
    """

    daemon_threads = True
    block_on_close = False  # a client may keep its connection open for longer than the test

    def __init__(self, root: Path) -> None:
        """Args:
        root: where its repositories are kept, or go on to be kept.
        """
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.blobs = Blobs(root / "blobs")
        self.requests: list[Request] = []
        self.page_size = 1000
        self.part_size = 64_000_000
        self.lock = threading.RLock()
        self._tokens: dict[str, Token] = {}
        self._moved: dict[tuple[str, str], str] = {}
        self._faults: list[Fault] = []
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> "Hub":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away; mistakes of this server are answered with 500."""

    @property
    def endpoint(self) -> str:
        """Its address, for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def cdn(self) -> str:
        """The address of the same server under another host's name."""
        return f"http://localhost:{self.server_port}"

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """Return the variables that bring a client's process here, with nothing in its cache.

        Args:
            home: the client's cache and settings.
            token: what it says it is; None is nobody.
        """
        found = {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",  # this server speaks plain LFS
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }
        return found if token is None else {**found, "HF_TOKEN": token}

    def add_token(self, token: str, user: str, role: str = "write", *orgs: str) -> None:
        """Let a token in: of a user, with the role `read` or `write`, in some organizations."""
        self._tokens[token] = Token(user, role, orgs)

    def token(self, token: str) -> Token | None:
        """Return what a token stands for."""
        return self._tokens.get(token)

    def knows(self, owner: str) -> bool:
        """Tell whether there is a user or organization of that name."""
        return any(owner in (token.user, *token.orgs) for token in self._tokens.values())

    def repository(self, name: str, kind: str = "models") -> Repository:
        """Return a repository, whether it is there or not."""
        return Repository(kind, name, self.root / kind / name, self.blobs)

    def create(self, name: str, kind: str = "models", *, private: bool = False) -> Repository:
        """Make a repository without asking for a token."""
        repository = self.repository(name, kind)
        repository.create(private)
        return repository

    def repositories(self, kind: str = "models") -> list[str]:
        """Return the names of all repositories of a kind."""
        folders = (path.parent for path in (self.root / kind).glob("*/*/repository.json"))
        return sorted(folder.relative_to(self.root / kind).as_posix() for folder in folders)

    def rename(self, old: str, new: str, kind: str = "models") -> None:
        """Give a repository another name; its old one leads there from now on."""
        target = self.root / kind / new
        target.parent.mkdir(parents=True, exist_ok=True)
        (self.root / kind / old).rename(target)
        self.moved(old, new, kind)

    def moved(self, old: str, new: str, kind: str = "models") -> None:
        """Let a name lead to another."""
        self._moved[kind, old] = new

    def new_name(self, kind: str, name: str) -> str | None:
        """Return the name that another leads to."""
        return self._moved.get((kind, name))

    def fail(
        self,
        method: str,
        path: str,
        status: int | None = None,
        *,
        headers: dict[str, str] | None = None,
        message: str = "told to fail",
        cut_after: int = 0,
        times: int | None = None,
    ) -> Fault:
        """Let the next requests that match fail; what the words mean stands in `Fault`."""
        fault = Fault(method, path, status, headers or {}, message, cut_after, times)
        self._faults.append(fault)
        return fault

    def mend(self) -> None:
        """Let nothing fail any more."""
        self._faults.clear()

    def fault(self, method: str, path: str) -> Fault | None:
        """Return the fault that hits a request."""
        with self.lock:
            return next((fault for fault in self._faults if fault.hit(method, path)), None)

    def asked(self, method: str, path: str) -> list[Request]:
        """Return the requests so far of a method with a path that matches an expression."""
        return [r for r in self.requests if r.method == method and re.search(path, r.path)]


class Handler(BaseHTTPRequestHandler):
    """Answers one connection's requests."""

    server: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each body waits 40 ms for the client to confirm its head

    def log_message(self, *args: object) -> None:
        """Keep the test's output quiet."""

    def do_GET(self) -> None:
        """Answer any request, whatever its method."""
        url = urlsplit(self.path)
        self.raw_path, self.query = url.path, parse_qs(url.query)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.told = Request(self.command, unquote(url.path), self.query, headers)
        self.server.requests.append(self.told)
        self.cut_after: int | None = None
        self.unread = int(self.headers.get("Content-Length") or 0)
        self.chunked = "chunked" in self.headers.get("Transfer-Encoding", "")
        try:
            self._fail_if_told()
            self._dispatch()
        except Cut:
            self.close_connection = True
        except Refusal as refusal:
            self._drain()
            body = {"error": refusal.message, **refusal.body}
            self._json(refusal.status, body, refusal.headers)
        except Exception as error:
            self._drain()
            self._json(500, {"error": f"{type(error).__name__}: {error}"})
            raise

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _fail_if_told(self) -> None:
        fault = self.server.fault(self.command, self.told.path)
        if fault is None:
            return
        if fault.status is not None:
            raise Refusal(fault.status, fault.message, headers=fault.headers)
        if not self.unread and not self.chunked:
            self.cut_after = fault.cut_after
            return
        read = 0
        while read < fault.cut_after and (piece := self._read(min(PIECE, fault.cut_after - read))):
            read += len(piece)
        # Closing at once, with bytes unread, resets the connection, as a network that breaks does.
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        raise Cut

    def _dispatch(self) -> None:
        method = "GET" if self.command == "HEAD" else self.command
        for wanted, pattern, answer in ROUTES:
            found = re.fullmatch(pattern, self.raw_path) if wanted == method else None
            if found:
                self.groups = found
                named = found.groupdict()
                try:
                    answer(self, **{name: unquote(value or "") for name, value in named.items()})
                except Moved:
                    self._redirect_to_new_name(named["kind"] or "models")
                except NoSuchRevision as error:
                    raise Refusal(404, f"Invalid rev id: {error}", "RevisionNotFound") from error
                return
        raise Refusal(404, "Sorry, we can't find the page you are looking for.")

    # Bodies and answers

    def _read(self, most: int) -> bytes:
        """Return the next bytes of the request's body; none at its end."""
        if self.chunked and not self.unread:
            self.unread = int(self.rfile.readline().split(b";")[0] or b"0", 16)
            if not self.unread:
                self.chunked = False
                self.rfile.readline()
        piece = self.rfile.read(min(most, self.unread)) if self.unread else b""
        self.unread -= len(piece)
        if self.chunked and not self.unread:
            self.rfile.readline()
        return piece

    def _body(self) -> bytes:
        pieces = []
        while piece := self._read(PIECE):
            pieces.append(piece)
        return b"".join(pieces)

    def _drain(self) -> None:
        """Read what is left of the request, so that the next one on this connection is found."""
        while self._read(PIECE):
            pass

    def _asked_for(self) -> dict[str, Any]:
        return dict(json.loads(self._body() or b"{}"))

    def _json(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        self._drain()
        content = json.dumps(value).encode()
        self._start(status, len(content), {"Content-Type": "application/json", **(headers or {})})
        self._write(iter([content]))

    def _start(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.told.status = status
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _write(self, pieces: Iterator[bytes]) -> None:
        if self.command == "HEAD":
            return
        left = self.cut_after
        for piece in pieces:
            if left is not None and len(piece) >= left:
                self.wfile.write(piece[:left])
                self.told.status = None
                raise Cut
            self.wfile.write(piece)
            left = None if left is None else left - len(piece)

    def _redirect(self, status: int, location: str, headers: dict[str, str] | None = None) -> None:
        self._drain()
        self._start(status, 0, {"Location": location, **(headers or {})})

    def _redirect_to_new_name(self, kind: str) -> None:
        start, end = self.groups.span("repo")
        new = self.server.new_name(kind, unquote(self.groups["repo"])) or ""
        query = urlsplit(self.path).query
        path = self.raw_path[:start] + quote(new) + self.raw_path[end:]
        self._redirect(307, path + (f"?{query}" if query else ""))

    # Who asks, and what they may

    def _caller(self) -> Token | None:
        if self.told.token is None:
            return None
        found = self.server.token(self.told.token)
        if found is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return found

    def _writer(self, name: str) -> Token:
        caller = self._caller()
        if caller is None:
            raise Refusal(401, "Invalid username or password.")
        if caller.role != "write":
            raise Refusal(403, "Forbidden: you must use a write token to upload to a repository.")
        if not caller.owns(name):
            raise Refusal(403, f'You don\'t have the rights to write under "{name.split("/")[0]}"')
        return caller

    def _repository(self, kind: str, name: str) -> Repository:
        """Return a repository that the caller may see.

        Raises:
            Moved: it has another name by now.
            Refusal: there is none, or it is not for them: the Hub does not tell which.
        """
        caller = self._caller()
        if self.server.new_name(kind or "models", name):
            raise Moved
        found = self.server.repository(name, kind or "models")
        known = name.count("/") == 1 and (found.folder / "repository.json").exists()
        if known and (not found.state["private"] or (caller and caller.owns(name))):
            return found
        if caller is None:
            raise Refusal(401, "Invalid username or password.")
        raise Refusal(404, "Repository not found", "RepoNotFound")

    def _own(self, kind: str, name: str) -> Repository:
        found = self._repository(kind, name)
        self._writer(found.name)
        return found

    def _let_in(self, repository: Repository) -> None:
        """Refuse the files of a gated repository to whom its terms do not bind."""
        caller, state = self._caller(), repository.state
        if not state["gated"] or (caller and caller.owns(repository.name)):
            return
        word = "model" if repository.kind == "models" else "dataset"
        restricted = f"Access to {word} {repository.name} is restricted"
        if caller is None:
            login = "You must have access to it and be authenticated to access it. Please log in."
            raise Refusal(401, f"{restricted}. {login}", "GatedRepo")
        if caller.user not in state["granted"]:
            page = f"{self.server.endpoint}/{_page(repository)}"
            ask = f"and you are not in the authorized list. Visit {page} to ask for access."
            raise Refusal(403, f"{restricted} {ask}", "GatedRepo")

    # The routes

    def whoami(self) -> None:
        caller = self._caller()
        if caller is None:
            raise Refusal(401, "Invalid username or password.")
        orgs = [{"type": "org", "name": org, "roleInOrg": "write"} for org in caller.orgs]
        access = {"displayName": "for tests", "role": caller.role, "createdAt": "2026-01-01"}
        auth = {"type": "access_token", "accessToken": access}
        self._json(
            200,
            {"type": "user", "id": caller.user, "name": caller.user, "orgs": orgs, "auth": auth},
        )

    def validate_yaml(self) -> None:
        errors, warnings = validated(str(self._asked_for().get("content", "")))
        told = {
            "errors": [{"message": text} for text in errors],
            "warnings": [{"message": text} for text in warnings],
        }
        self._json(400 if errors else 200, told)

    def create_repository(self) -> None:
        wanted = self._asked_for()
        caller = self._caller()
        if caller is None:
            raise Refusal(401, "Invalid username or password.")
        owner = wanted.get("organization") or caller.user
        name = f"{owner}/{wanted['name']}"
        if not self.server.knows(owner):
            raise Refusal(404, f"Namespace {owner} not found")
        self._writer(name)
        kind = f"{wanted.get('type') or 'model'}s"
        repository = self.server.repository(name, kind)
        where = {"url": f"{self.server.endpoint}/{_page(repository)}", "name": name}
        with self.server.lock:
            if repository.folder.exists():
                raise Refusal(409, f"You already created this {kind[:-1]} repo", **where)
            repository.create(wanted.get("visibility") == "private" or bool(wanted.get("private")))
        self._json(200, {**where, "id": name})

    def delete_repository(self) -> None:
        wanted = self._asked_for()
        name = "/".join(filter(None, (wanted.get("organization"), wanted["name"])))
        found = self._own(f"{wanted.get('type') or 'model'}s", name)
        shutil.rmtree(found.folder)
        self._json(200, {})

    def move_repository(self) -> None:
        wanted = self._asked_for()
        found = self._own(f"{wanted.get('type') or 'model'}s", wanted["fromRepo"])
        self._writer(wanted["toRepo"])
        self.server.rename(found.name, wanted["toRepo"], found.kind)
        self._json(200, {})

    def info(self, kind: str, repo: str, revision: str = "") -> None:
        found = self._repository(kind, repo)
        history = found.history(revision or MAIN)
        commit, newest = history[0]
        state, card, files = found.state, found.card(commit), found.files(commit)
        blobs = "blobs" in self.query
        told = {
            "id": found.name,
            "modelId" if kind == "models" else "datasetId": found.name,
            "author": found.name.split("/")[0],
            "sha": commit,
            "createdAt": history[-1][1]["date"],
            "lastModified": newest["date"],
            "private": state["private"],
            "gated": state["gated"],
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [*card.get("tags", [])],
            "cardData": card,
            "siblings": [
                {"rfilename": path, **(_described(file) if blobs else {})}
                for path, file in files.items()
            ],
            "usedStorage": sum(file.size for file in files.values()),
        }
        for key in ("library_name", "pipeline_tag"):
            if key in card:
                told[key] = card[key]
        wanted = self.query.get("expand")
        if wanted:
            told = {key: value for key, value in told.items() if key in ("id", *wanted)}
        self._json(200, told)

    def auth_check(self, kind: str, repo: str, write: str = "") -> None:
        found = self._own(kind, repo) if write else self._repository(kind, repo)
        self._let_in(found)
        self._json(200, {})

    def tree(self, kind: str, repo: str, revision: str, path: str = "") -> None:
        found = self._repository(kind, repo)
        files = found.files(revision)
        recursive = self.query.get("recursive", ["false"])[0].lower() == "true"
        entries = _entries(files, path.strip("/"), recursive)
        if path and not entries:
            raise Refusal(404, f'{path} does not exist on "{revision}"', "EntryNotFound")
        start = int(self.query.get("cursor", ["0"])[0])
        size = min(self.server.page_size, int(self.query.get("limit", ["1000"])[0]))
        headers = {}
        if start + size < len(entries):
            query = urlencode({**self.query, "cursor": [start + size]}, doseq=True)
            headers["Link"] = f'<{self.server.endpoint}{self.raw_path}?{query}>; rel="next"'
        self._json(200, entries[start : start + size], headers)

    def paths_info(self, kind: str, repo: str, revision: str) -> None:
        found = self._repository(kind, repo)
        wanted = parse_qs(self._body().decode()).get("paths", [])
        files = found.files(revision)
        told = []
        for path in wanted:
            if path in files:
                told.append(_file_entry(path, files[path]))
            elif any(name.startswith(f"{path}/") for name in files):
                told.append(_folder_entry(path))
        self._json(200, told)

    def refs(self, kind: str, repo: str) -> None:
        state = self._repository(kind, repo).state

        def listed(where: str, refs: dict[str, str]) -> list[dict[str, str]]:
            return [
                {"name": name, "ref": f"refs/{where}/{name}", "targetCommit": commit}
                for name, commit in refs.items()
            ]

        told = {"converts": [], "pullRequests": []}
        self._json(
            200,
            told
            | {"branches": listed("heads", state["branches"])}
            | {"tags": listed("tags", state["tags"])},
        )

    def commits(self, kind: str, repo: str, revision: str) -> None:
        history = self._repository(kind, repo).history(revision)
        self._json(
            200,
            [
                {
                    "id": commit,
                    "title": content["title"],
                    "message": content["message"],
                    "date": content["date"],
                    "authors": [{"user": repo.split("/")[0]}],
                }
                for commit, content in history
            ],
        )

    def create_branch(self, kind: str, repo: str, name: str) -> None:
        wanted = self._asked_for()
        found = self._own(kind, repo)
        with self.server.lock:
            branches = found.state["branches"]
            if name in branches:
                raise Refusal(409, f"Reference already exists: refs/heads/{name}")
            commit = found.resolve(wanted.get("startingPoint") or MAIN)
            found.change(branches={**branches, name: commit})
        self._json(200, {})

    def create_tag(self, kind: str, repo: str, revision: str) -> None:
        wanted = self._asked_for()
        found = self._own(kind, repo)
        with self.server.lock:
            tags = found.state["tags"]
            if wanted["tag"] in tags:
                raise Refusal(409, f"Reference already exists: refs/tags/{wanted['tag']}")
            found.change(tags={**tags, wanted["tag"]: found.resolve(revision)})
        self._json(200, {})

    def delete_branch(self, kind: str, repo: str, name: str) -> None:
        self._delete_ref("branches", self._own(kind, repo), name)

    def delete_tag(self, kind: str, repo: str, revision: str) -> None:
        self._delete_ref("tags", self._own(kind, repo), revision)

    def _delete_ref(self, kind: str, found: Repository, name: str) -> None:
        refs = found.state[kind]
        if name not in refs:
            raise NoSuchRevision(name)
        del refs[name]
        found.change(**{kind: refs})
        self._json(200, {})

    def settings(self, kind: str, repo: str) -> None:
        found = self._own(kind, repo)
        wanted = self._asked_for()
        if "visibility" in wanted:
            wanted["private"] = wanted["visibility"] == "private"
        found.change(**{key: wanted[key] for key in ("private", "gated") if key in wanted})
        self._json(200, {"private": found.state["private"]})

    def preupload(self, kind: str, repo: str, revision: str) -> None:
        found = self._own(kind, repo)
        files = found.files(revision)
        told = []
        for entry in self._asked_for()["files"]:
            path = entry["path"]
            sample = base64.b64decode(entry.get("sample") or "")
            lfs = found.goes_by_lfs(path, entry["size"], sample, revision)
            old = files.get(path)
            told.append(
                {
                    "path": path,
                    "uploadMode": "lfs" if lfs else "regular",
                    "shouldIgnore": False,
                    "oid": None if old is None else old.sha256 if old.lfs else old.oid,
                }
            )
        self._json(200, {"files": told, "commitOid": found.resolve(revision)})

    def lfs_batch(self, kind: str, repo: str) -> None:
        self._own(kind, repo)
        wanted = self._asked_for()
        multipart = "multipart" in wanted.get("transfers", ())
        told, transfer = [], "basic"
        for entry in wanted["objects"]:
            oid, size = entry["oid"], entry["size"]
            if self.server.blobs.path(oid).exists():
                told.append({"oid": oid, "size": size})  # without actions: it is there
                continue
            address = f"{self.server.endpoint}/lfs/{oid}"
            upload: dict[str, Any] = {"href": address}
            if multipart and size > self.server.part_size:
                transfer = "multipart"
                count = -(-size // self.server.part_size)
                parts = {f"{n:05}": f"{address}/{n}" for n in range(1, count + 1)}
                header = {"chunk_size": str(self.server.part_size), **parts}
                upload = {"href": f"{address}/complete", "header": header}
            verify = {
                "href": self.server.endpoint + self.raw_path.replace("objects/batch", "verify")
            }
            told.append({"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}})
        self._json(200, {"transfer": transfer, "objects": told})

    def lfs_upload(self, oid: str) -> None:
        content = self._body()
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, "The content is not what its SHA-256 says")
        self.server.blobs.add(content)
        self._json(200, {})

    def lfs_part(self, oid: str, number: str) -> None:
        content = self._body()
        folder = self.server.root / "uploads" / oid
        folder.mkdir(parents=True, exist_ok=True)
        (folder / number).write_bytes(content)
        self._json(200, {}, {"ETag": f'"{hashlib.md5(content).hexdigest()}"'})

    def lfs_complete(self, oid: str) -> None:
        folder = self.server.root / "uploads" / oid
        numbers = [str(part["partNumber"]) for part in self._asked_for()["parts"]]
        content = b"".join((folder / number).read_bytes() for number in numbers)
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, "The parts together are not what their SHA-256 says")
        self.server.blobs.add(content)
        shutil.rmtree(folder)
        self._json(200, {})

    def lfs_verify(self, kind: str, repo: str) -> None:
        self._own(kind, repo)
        wanted = self._asked_for()
        path = self.server.blobs.path(wanted["oid"])
        if not path.exists() or path.stat().st_size != wanted["size"]:
            raise Refusal(404, "No such object")
        self._json(200, {})

    def commit(self, kind: str, repo: str, revision: str) -> None:
        found = self._own(kind, repo)
        lines = [json.loads(line) for line in self._body().splitlines() if line]
        header: dict[str, Any] = {}
        written: dict[str, bytes | File] = {}
        deleted: list[str] = []
        for line in lines:
            key, value = line["key"], line["value"]
            if key == "header":
                header = value
            elif key == "file":
                written[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                try:
                    written[value["path"]] = self.server.blobs.file(value["oid"], lfs=True)
                except FileNotFoundError as error:
                    reason = f"LFS pointer of {value['path']} pointed to a file that does not exist"
                    raise Refusal(400, reason) from error
            elif key in ("deletedFile", "deletedFolder"):
                slash = "/" if key == "deletedFolder" else ""
                deleted.append(value["path"].rstrip("/") + slash)
        card = written.get("README.md")
        errors = validated(card.decode())[0] if isinstance(card, bytes) else []
        if errors:
            raise Refusal(400, "; ".join(errors))
        with self.server.lock:
            if revision not in found.state["branches"]:
                raise NoSuchRevision(revision)
            if header.get("parentCommit") not in (None, found.resolve(revision)):
                raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            title, message = header.get("summary", ""), header.get("description", "")
            commit = found.commit(
                written, tuple(deleted), title=title, message=message, branch=revision
            )
        page = f"{self.server.endpoint}/{_page(found)}/commit/{commit}"
        self._json(200, {"success": True, "commitUrl": page, "commitOid": commit})

    def resolve(self, kind: str, repo: str, revision: str, path: str) -> None:
        found = self._repository(kind, repo)
        self._let_in(found)
        commit = found.resolve(revision)
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        file = found.files(commit).get(path)
        if file is None:
            raise Refusal(404, "Entry not found", "EntryNotFound", headers)
        if file.lfs:
            linked = {"X-Linked-Size": str(file.size), "X-Linked-Etag": f'"{file.sha256}"'}
            self._redirect(302, f"{self.server.cdn}/cdn/{file.sha256}", headers | linked)
        else:
            self._content(self.server.blobs.path(file.sha256), {**headers, "ETag": f'"{file.oid}"'})

    def from_cdn(self, sha256: str) -> None:
        path = self.server.blobs.path(sha256)
        if not path.exists():
            raise Refusal(403, "Access Denied")
        self._content(path, {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"})

    def _content(self, path: Path, headers: dict[str, str]) -> None:
        size = path.stat().st_size
        first, last, status = 0, size - 1, 200
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted:
            first, status = int(wanted[1]), 206
            last = min(last, int(wanted[2] or last))
            if first >= size:
                raise Refusal(
                    416, "Range Not Satisfiable", None, {"Content-Range": f"bytes */{size}"}
                )
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        self._start(
            status, last - first + 1, {"Content-Type": "application/octet-stream", **headers}
        )

        def pieces() -> Iterator[bytes]:
            with path.open("rb") as file:
                file.seek(first)
                left = last - first + 1
                while left and (piece := file.read(min(PIECE, left))):
                    left -= len(piece)
                    yield piece

        self._write(pieces())

    def no_export(self, kind: str, repo: str, export: str) -> None:
        self._repository(kind, repo)
        raise Refusal(404, f"The dataset {repo} has no {export} export", "ResponseNotFound")


# Method, path, and what answers it: the first that matches. Names in paths are percent-encoded.
ROUTES: list[tuple[str, str, Any]] = [
    ("GET", r"/api/whoami-v2", Handler.whoami),
    ("POST", r"/api/validate-yaml", Handler.validate_yaml),
    ("POST", r"/api/repos/create", Handler.create_repository),
    ("DELETE", r"/api/repos/delete", Handler.delete_repository),
    ("POST", r"/api/repos/move", Handler.move_repository),
    ("GET", API + r"/revision/(?P<revision>[^/]+)", Handler.info),
    ("GET", API + r"/auth-check(?P<write>/write)?", Handler.auth_check),
    ("GET", API + r"/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", Handler.tree),
    ("POST", API + r"/paths-info/(?P<revision>[^/]+)", Handler.paths_info),
    ("GET", API + r"/refs", Handler.refs),
    ("GET", API + r"/commits/(?P<revision>[^/]+)", Handler.commits),
    ("POST", API + r"/branch/(?P<name>[^/]+)", Handler.create_branch),
    ("DELETE", API + r"/branch/(?P<name>[^/]+)", Handler.delete_branch),
    ("POST", API + r"/tag/(?P<revision>[^/]+)", Handler.create_tag),
    ("DELETE", API + r"/tag/(?P<revision>[^/]+)", Handler.delete_tag),
    ("PUT", API + r"/settings", Handler.settings),
    ("POST", API + r"/preupload/(?P<revision>[^/]+)", Handler.preupload),
    ("POST", API + r"/commit/(?P<revision>[^/]+)", Handler.commit),
    ("GET", API + r"/(?P<export>parquet|compat)(?:/.*)?", Handler.no_export),
    ("GET", API, Handler.info),
    ("POST", PAGE + r"\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("POST", PAGE + r"\.git/info/lfs/verify", Handler.lfs_verify),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", Handler.lfs_upload),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})/(?P<number>\d+)", Handler.lfs_part),
    ("POST", r"/lfs/(?P<oid>[0-9a-f]{64})/complete", Handler.lfs_complete),
    ("GET", PAGE + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.resolve),
    ("GET", r"/cdn/(?P<sha256>[0-9a-f]{64})", Handler.from_cdn),
]


def _page(repository: Repository) -> str:
    return ("" if repository.kind == "models" else "datasets/") + repository.name


def _described(file: File) -> dict[str, Any]:
    told: dict[str, Any] = {"size": file.size, "blobId": file.oid}
    if file.lfs:
        told["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": 134}
    return told


def _file_entry(path: str, file: File) -> dict[str, Any]:
    told: dict[str, Any] = {"type": "file", "path": path, "size": file.size, "oid": file.oid}
    if file.lfs:
        told["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 134}
    return told


def _folder_entry(path: str) -> dict[str, Any]:
    return {
        "type": "directory",
        "path": path,
        "size": 0,
        "oid": hashlib.sha1(path.encode()).hexdigest(),
    }


def _entries(files: dict[str, File], under: str, recursive: bool) -> list[dict[str, Any]]:
    """List what stands in a folder, or anywhere below it; folders too, as Git's trees do."""
    prefix = f"{under}/" if under else ""
    told: dict[str, dict[str, Any]] = {}
    for path, file in files.items():
        if not path.startswith(prefix):
            continue
        names = path.removeprefix(prefix).split("/")
        for depth in range(1, len(names) if recursive else min(2, len(names))):
            folder = prefix + "/".join(names[:depth])
            told[folder] = _folder_entry(folder)
        if recursive or len(names) == 1:
            told[path] = _file_entry(path, file)
    return [told[path] for path in sorted(told)]
