"""Where something is published: a repository of the Hub, or a local folder."""

import os
from dataclasses import dataclass
from pathlib import Path

from results.publish.hub_names import check_branch, check_name
from results.publish.model_files import CONFIG, may_leave
from results.run.run import Run
from search_spaces.errors import UserError


@dataclass(frozen=True)
class Target:
    """A repository or a folder.

    Attributes:
        name: `name/repo` on the Hub; or a folder: `./x`, `../x`, `/x`, `~/x` or one that exists.
        private: make the repository private; refused where it exists and is public.
        revision: a branch of the repository, which is created if it is missing.
    """

    name: str
    private: bool = False
    revision: str | None = None

    @property
    def folder(self) -> Path | None:
        """The local folder; None for a repository."""
        path = self.name.replace(os.sep, "/")
        local = (
            path in (".", "..", "~")
            or path.startswith(("./", "../", "/", "~/"))
            or (path != "" and os.path.isdir(self.name))
        )
        return Path(self.name).expanduser().resolve() if local else None

    @property
    def repo(self) -> str | None:
        """The repository; None for a folder."""
        return self.name if self.folder is None else None

    @property
    def branch(self) -> str | None:
        """The branch of the repository, where it is not the main one."""
        return None if self.revision == "main" else self.revision

    def check(self, run: Run) -> None:
        """Refuse what a model of a run cannot be published to.

        Raises:
            UserError: a wrong name, an option without effect, or a folder that holds other files.
        """
        folder = self.folder
        if folder is None:
            check_name(self.name)
            if self.revision is not None:
                check_branch(self.revision)
            return
        for option, given in (("--private", self.private), ("--revision", self.revision)):
            if given:
                raise UserError(
                    f"{option} has no effect for the local folder {self.name}. Remove it, or name "
                    "a repository as `name/repo`."
                )
        _check_folder(folder, run)


def _check_folder(target: Path, run: Run) -> None:
    if target.is_relative_to(run.folder):
        raise UserError(f"{target} is a part of run {run.name} itself; name another folder.")
    if not os.path.lexists(target):
        above = next(folder for folder in target.parents if os.path.lexists(folder))
        if not above.is_dir():
            raise UserError(
                f"{target} cannot be written ({above} is a file); name a folder that can."
            )
        return
    if not target.is_dir():
        raise UserError(f"{target} is a file; name a folder to publish into.")
    try:
        names = os.listdir(target)
    except OSError as error:
        raise UserError(
            f"{target} cannot be read ({error.strerror}); name a folder that can."
        ) from error
    foreign = [name for name in names if not may_leave(name)]
    if names and (foreign or CONFIG not in names):
        raise UserError(
            f"{target} is not empty and not an earlier push (it holds {min(foreign or names)}); "
            "name a new or an empty folder."
        )
