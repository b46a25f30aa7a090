"""Repositories on the disk: commits that never change, over files kept once by their content.

<root>/blobs/<sha256>                          the content of a file, whichever repository has it
<root>/<models|datasets>/<owner>/<name>/
    repository.json                            private, gated, branches, tags
    commits/<id>.json                          parent, title, date, path -> File
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from hub.cards import metadata

MAIN = "main"
LARGEST_REGULAR = 10_000_000  # bytes; what is larger goes by LFS, whatever its name
LFS_KINDS = (
    "*.arrow *.bin *.gz *.h5 *.msgpack *.npy *.npz *.onnx *.ot *.parquet *.pickle *.pkl *.pt *.pth "
    "*.safetensors *.tar *.tflite *.tgz *.zip *tfevents*"
).split()
ATTRIBUTES = "".join(f"{kind} filter=lfs diff=lfs merge=lfs -text\n" for kind in LFS_KINDS)


class NoSuchRevision(Exception):
    """A repository has no such branch, tag or commit."""


@dataclass(frozen=True)
class File:
    """One file of a commit; its content is the blob called `sha256`."""

    sha256: str
    size: int
    oid: str  # Git's name for it: of the content, or of the LFS pointer to it
    lfs: bool


class Blobs:
    """Contents by their SHA-256, shared by all repositories, as in the Hub's LFS store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        return self.folder / sha256

    def add(self, content: bytes) -> str:
        """Keep a content; return its SHA-256."""
        sha256 = hashlib.sha256(content).hexdigest()
        path = self.path(sha256)
        if not path.exists():
            # Two uploads of one content may come at once: each writes a file of its own.
            part = path.with_name(f"{sha256}.{datetime.now(UTC).timestamp()}")
            part.write_bytes(content)
            part.rename(path)
        return sha256

    def file(self, sha256: str, lfs: bool) -> File:
        """Describe a content that is there as a file of a commit.

        Raises:
            FileNotFoundError: it is not there.
        """
        size = self.path(sha256).stat().st_size
        pointer = "version https://git-lfs.github.com/spec/v1\n"
        pointer += f"oid sha256:{sha256}\nsize {size}\n"
        content = pointer.encode() if lfs else self.path(sha256).read_bytes()
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return File(sha256, size, oid, lfs)


class Repository:
    """A model or a data set: its settings, branches, tags and commits."""

    def __init__(self, kind: str, name: str, folder: Path, blobs: Blobs) -> None:
        """Args:
        kind: `models` or `datasets`.
        name: `owner/name`.
        folder: where it is kept.
        blobs: where the content of its files is.
        """
        self.kind, self.name, self.folder, self.blobs = kind, name, folder, blobs

    @property
    def state(self) -> dict[str, Any]:
        """What can change: `private`, `gated`, `granted`, `branches`, `tags`."""
        return dict(json.loads((self.folder / "repository.json").read_text()))

    def change(self, **facts: Any) -> None:
        """Change settings."""
        kept = self.state if (self.folder / "repository.json").exists() else {}
        path = self.folder / "repository.json.new"
        path.write_text(json.dumps({**kept, **facts}, indent=1))
        path.rename(self.folder / "repository.json")

    def create(self, private: bool = False) -> None:
        """Make it, with the one commit that the Hub begins every repository with."""
        (self.folder / "commits").mkdir(parents=True)
        self.change(private=private, gated=False, granted=[], branches={}, tags={})
        self.commit({".gitattributes": ATTRIBUTES.encode()}, title="initial commit")

    def resolve(self, revision: str) -> str:
        """Return the commit that a branch, a tag or a commit's beginning stands for.

        Raises:
            NoSuchRevision: there is none.
        """
        state = self.state
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        for refs in (state["branches"], state["tags"]):
            if name in refs:
                return str(refs[name])
        if len(revision) >= 7:
            for path in sorted((self.folder / "commits").glob(f"{revision}*.json")):
                return path.stem
        raise NoSuchRevision(revision)

    def read_commit(self, commit: str) -> dict[str, Any]:
        """Return a commit: `parent`, `title`, `message`, `date`, `files`."""
        return dict(json.loads((self.folder / "commits" / f"{commit}.json").read_text()))

    def history(self, revision: str = MAIN) -> list[tuple[str, dict[str, Any]]]:
        """Return (id, commit) of a revision and of all before it, newest first."""
        found = []
        commit: str | None = self.resolve(revision)
        while commit:
            found.append((commit, self.read_commit(commit)))
            commit = found[-1][1]["parent"]
        return found

    def files(self, revision: str = MAIN) -> dict[str, File]:
        """Return the files of a revision, by path."""
        kept = self.read_commit(self.resolve(revision))["files"]
        return {path: File(**kept[path]) for path in sorted(kept)}

    def read(self, path: str, revision: str = MAIN) -> bytes:
        """Return the content of a file.

        Raises:
            KeyError: the revision has no such file.
        """
        return self.blobs.path(self.files(revision)[path].sha256).read_bytes()

    def card(self, revision: str = MAIN) -> dict[str, Any]:
        """Return the metadata of the README.md."""
        files = self.files(revision)
        return metadata(self.read("README.md", revision).decode()) if "README.md" in files else {}

    def goes_by_lfs(self, path: str, size: int, sample: bytes = b"", revision: str = MAIN) -> bool:
        """Tell whether the Hub keeps such a file by LFS: for its kind, its size or as binary."""
        attributes = self.read(".gitattributes", revision).decode()
        kinds = [line.split()[0] for line in attributes.splitlines() if "filter=lfs" in line]
        name = Path(path).name
        return (
            any(fnmatch(name, kind) for kind in kinds) or size > LARGEST_REGULAR or b"\0" in sample
        )

    def commit(
        self,
        written: Mapping[str, bytes | File],
        deleted: tuple[str, ...] = (),
        *,
        title: str = "Upload files",
        message: str = "",
        branch: str = MAIN,
    ) -> str:
        """Add a commit to a branch; return its id.

        Args:
            written: path -> content, or a file whose content is there.
            deleted: paths to leave out; one that ends in `/` is a folder.
            title: the message's first line.
            message: the rest of it.
            branch: which one it goes to.
        """
        branches = self.state["branches"]
        parent = branches.get(branch)
        files = self.files(parent) if parent else {}
        for gone in deleted:
            files = {
                path: file
                for path, file in files.items()
                if path != gone and not (gone.endswith("/") and path.startswith(gone))
            }
        for path, content in written.items():
            if isinstance(content, bytes):
                lfs = bool(parent) and self.goes_by_lfs(path, len(content), revision=str(parent))
                content = self.blobs.file(self.blobs.add(content), lfs)
            files[path] = content
        text = json.dumps(
            {
                "parent": parent,
                "title": title,
                "message": message,
                "date": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                "files": {path: asdict(file) for path, file in sorted(files.items())},
            },
            indent=1,
        )
        commit = hashlib.sha1(f"{self.kind}/{self.name}\n{text}".encode()).hexdigest()
        (self.folder / "commits" / f"{commit}.json").write_text(text)
        self.change(branches={**branches, branch: commit})
        return commit

    def commit_folder(self, folder: Path, title: str = "Upload files") -> str:
        """Add a commit with every file of a folder; return its id."""
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        contents = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
        return self.commit(contents, title=title)
