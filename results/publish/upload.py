"""One commit on the Hub with exactly the files that were meant, and then a tag for it.

Whatever fails on the way leaves the commit before, untagged: the same command continues from there.
"""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

from results.publish.hub_errors import passes, patience, refusal
from search_spaces.errors import UserError

# Seconds before each further try; the client's own requests for uploads try again as well.
WAITS = (1.0, 4.0, 15.0)
LONGEST = 120.0  # that the Hub may ask us to wait
CARD = "README.md"


@dataclass(frozen=True)
class Upload:
    """What is to be in a repository.

    Attributes:
        repo: `name/repo`, or the name alone for the token's own user.
        kind: of repository.
        contents: file name -> path or bytes; all at the repository's root.
        ours: whether a file of that name could be an earlier push's. Such files go where they are
            no longer part; all others stay.
        mark: the name of a file that every push has.
        tag: for the commit.
        message: of the commit.
        private: make the repository private.
        revision: a branch, which is created if it is missing; None is the main one.
    """

    repo: str
    kind: Literal["model", "dataset"]
    contents: Mapping[str, Path | bytes]
    ours: Callable[[str], bool]
    mark: str
    tag: str
    message: str
    private: bool = False
    revision: str | None = None


@dataclass(frozen=True)
class Uploaded:
    """Where it is now.

    Attributes:
        url: of the repository.
        commit: the commit that holds the files.
        tag: that points at it, or at an earlier one with the same files.
        committed: whether there was anything to commit.
        tagged: whether the tag is new.
    """

    url: str
    commit: str
    tag: str
    committed: bool
    tagged: bool


@dataclass(frozen=True)
class Blob:
    """A file as git and LFS know it."""

    size: int
    sha1: str  # of a plain file: git's own
    sha256: str  # of an LFS file

    @classmethod
    def of(cls, content: Path | bytes) -> "Blob":
        """Read a file once, for both its names."""
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        sha1, sha256 = hashlib.sha1(b"blob %d\0" % size), hashlib.sha256()
        if isinstance(content, bytes):
            sha1.update(content)
            sha256.update(content)
        else:
            with content.open("rb") as file:
                while part := file.read(1 << 20):
                    sha1.update(part)
                    sha256.update(part)
        return cls(size, sha1.hexdigest(), sha256.hexdigest())

    def is_at(self, remote: Any) -> bool:
        """Whether a `RepoFile` of the Hub is this very file."""
        there = remote.lfs.sha256 if remote.lfs else remote.blob_id
        return bool(
            remote.size == self.size and there == (self.sha256 if remote.lfs else self.sha1)
        )


def upload(wanted: Upload, token: str, endpoint: str | None = None) -> Uploaded:
    """Make the repository hold exactly what is wanted, in one commit, and tag it.

    A commit is made only where something differs. The tag comes last, after what arrived has been
    compared with what was meant. What passes by itself (a lost connection, a busy Hub) is tried
    again a few times; files that have arrived are not sent again, in the next call neither.

    Args:
        wanted: the repository and its files.
        token: to write with.
        endpoint: the Hub's address; default: huggingface_hub's.

    Raises:
        UserError: the Hub refused, was out of reach, or holds other files than were meant.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    api = HfApi(endpoint=endpoint, token=token, library_name="preftune")
    try:
        work = _Work(wanted, api)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}).") from error
    for wait in (*WAITS, None):
        try:
            return work.go()
        except (HTTPError, OSError, ValueError, RuntimeError) as error:
            if wait is None or not passes(error) or patience(error) > LONGEST:
                message = (
                    refusal(wanted.repo, wanted.kind, api.endpoint, error) + work.left_behind()
                )
                # A server may repeat what it was sent.
                raise UserError(message.replace(token, "***")) from error
            time.sleep(max(wait, patience(error)))
    raise AssertionError("the last try returns or raises")


class _Work:
    """One upload; what it knows and has done outlives its tries."""

    def __init__(self, wanted: Upload, api: Any) -> None:
        self.wanted, self.api = wanted, api
        self.repo = wanted.repo
        self.blobs = {name: Blob.of(content) for name, content in wanted.contents.items()}
        self.empty = self.sent = self.committed = False

    def go(self) -> Uploaded:
        wanted = self.wanted
        url = self.api.create_repo(
            wanted.repo, repo_type=wanted.kind, private=wanted.private or None, exist_ok=True
        )
        self.repo = str(url.repo_id)
        if wanted.private and not self._info(None).private:
            raise UserError(
                f"{self.repo} exists and is public; make it private on the Hub or choose another "
                "name."
            )
        if wanted.revision is not None:
            self._branch(wanted.revision)
        commit = str(self._info(wanted.revision).sha)
        there = self._files(commit)
        self.empty = not set(there) - {".gitattributes"}
        changed, gone = self._differing(there)
        if not (changed or gone):
            self.committed |= self.sent  # its answer was lost, not the commit
        else:
            self._refuse_foreign(there)
            commit = self._commit(commit, changed, gone)
            self.empty, self.committed = False, True
            self._verify(commit)
        tag, new = self._tag(commit)
        return Uploaded(str(url), commit, tag, self.committed, new)

    def left_behind(self) -> str:
        """Say what a failed upload has left on the Hub, where that is more than nothing."""
        if self.committed:
            return f" The files are in {self.repo}, but not tagged: run the same command again."
        if self.empty:
            kind = " --type dataset" if self.wanted.kind == "dataset" else ""
            return (
                f" {self.repo} exists and is still empty: run the same command again, or `hf repos "
                f"delete {self.repo}{kind}` removes it."
            )
        return ""

    def _info(self, revision: str | None) -> Any:
        return self.api.repo_info(self.repo, repo_type=self.wanted.kind, revision=revision)

    def _branch(self, name: str) -> None:
        refs = self.api.list_repo_refs(self.repo, repo_type=self.wanted.kind)
        if name in {ref.name for ref in refs.tags}:
            raise UserError(
                f"{name} is a tag of {self.repo}, and a branch of the same name would be taken for "
                "it; give --revision another."
            )
        if name not in {ref.name for ref in refs.branches}:
            self.api.create_branch(
                self.repo, repo_type=self.wanted.kind, branch=name, exist_ok=True
            )

    def _files(self, revision: str) -> dict[str, Any]:
        """The files at the root of a commit or tag, by name."""
        from huggingface_hub.hf_api import RepoFile

        tree = self.api.list_repo_tree(self.repo, repo_type=self.wanted.kind, revision=revision)
        return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}

    def _differing(self, there: Mapping[str, Any]) -> tuple[list[str], list[str]]:
        """Names of files that are missing or other there, and of those that no longer belong."""
        changed = [
            name
            for name, blob in self.blobs.items()
            if name not in there or not blob.is_at(there[name])
        ]
        gone = [name for name in there if self.wanted.ours(name) and name not in self.blobs]
        return changed, gone

    def _refuse_foreign(self, there: Mapping[str, Any]) -> None:
        # The Hub itself begins a repository with these two.
        begun = set(there) <= {CARD, ".gitattributes"}
        held = [] if begun else sorted(name for name in there if self.wanted.ours(name))
        if held and self.wanted.mark not in there:
            raise UserError(
                f"{self.repo} holds files that preftune has not pushed and would replace "
                f"({', '.join(held[:3])}); name another repository."
            )

    def _commit(self, parent: str, changed: list[str], gone: list[str]) -> str:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        self.sent = True
        # New ones for each try: the client marks those it has sent.
        operations: list[Any] = [
            CommitOperationAdd(name, self.wanted.contents[name]) for name in changed
        ]
        operations += [CommitOperationDelete(name, is_folder=False) for name in gone]
        made = self.api.create_commit(
            self.repo,
            operations,
            commit_message=self.wanted.message,
            repo_type=self.wanted.kind,
            revision=self.wanted.revision,
            parent_commit=parent,  # nobody's commit is overwritten that we have not seen
        )
        return str(made.oid)

    def _verify(self, commit: str) -> None:
        changed, gone = self._differing(self._files(commit))
        if changed or gone:
            raise UserError(
                f"Commit {commit[:8]} of {self.repo} is not what was sent: "
                f"{min(changed + gone)} differs. It is not tagged; push again."
            )

    def _tag(self, commit: str) -> tuple[str, bool]:
        """Tag a commit, unless an earlier tag of this name already has the same files.

        A tag is never moved: somebody may have pinned it. Other files get the next number.
        """
        kind = self.wanted.kind
        refs = self.api.list_repo_refs(self.repo, repo_type=kind)
        tags, branches = ({ref.name for ref in group} for group in (refs.tags, refs.branches))
        for number in count(1):
            name = self.wanted.tag if number == 1 else f"{self.wanted.tag}-v{number}"
            if name in branches:
                continue
            if name not in tags:
                self.api.create_tag(self.repo, tag=name, revision=commit, repo_type=kind)
                return name, True
            if self._differing(self._files(name)) == ([], []):
                return name, False
        raise AssertionError("numbers do not end")
