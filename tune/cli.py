"""The `preftune` command.

Heavy imports wait inside the commands: `--help` and `list` answer at once.
"""

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from results.publish.push import PushResult

# Where the output is not a terminal, rich assumes 80 columns: a leaderboard needs more.
console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120)
errors = Console(stderr=True)

app = typer.Typer(
    help="Search the hyperparameters of DPO, verify the winner, publish it, chat.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RunName = Annotated[
    str | None,
    typer.Argument(metavar="RUN", help="Name or folder of a run; by default the newest."),
]
Storage = Annotated[str, typer.Option(help="The folder that holds the run folders.")]
Address = Annotated[str | None, typer.Option(help="A running Ray cluster, host:port or `auto`.")]


@app.command()
def run(
    spec: Annotated[
        str, typer.Argument(metavar="SPEC", help="Name of a shipped search, or a YAML file.")
    ],
    name: Annotated[str | None, typer.Option(help="Name of the run folder.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Set a key of the search. Can be repeated."
        ),
    ] = None,
    address: Address = None,
) -> None:
    """Run a search: prepare, search, verify.

    It ends with a leaderboard and a verdict.
    """
    from search_spaces.spec import load

    checked = load(spec, set_ or [])
    from tune.cluster.signals import resumable
    from tune.record import create, resume_command
    from tune.run import run_search
    from tune.warm_start import settled

    checked = settled(checked)
    label = Path(spec).stem if name is None else name
    record = create(checked, label, name is not None, "preftune " + shlex.join(sys.argv[1:]))
    with resumable(resume_command(record.folder), errors):
        run_search(checked, record, address, console)


@app.command()
def resume(
    run: RunName = None,
    trials: Annotated[
        str | None, typer.Option(metavar="+N", help="Add N trials to the search.")
    ] = None,
    minutes: Annotated[
        str | None, typer.Option(metavar="+N", help="Add to search.minutes, its limit in time.")
    ] = None,
    storage: Storage = "runs",
    address: Address = None,
) -> None:
    """Resume a run, or add trials or minutes to it.

    A run can be resumed after a crash, Ctrl-C or a stop.
    """
    from tune.cluster.signals import resumable
    from tune.record import resume_command
    from tune.resume import reopened
    from tune.run import run_search

    claimed = reopened(run, storage, trials, minutes, console)
    if claimed is None:
        return
    spec, record = claimed
    with resumable(resume_command(record.folder), errors):
        run_search(spec, record, address, console)


@app.command()
def stop(run: RunName = None, storage: Storage = "runs") -> None:
    """Ask a running search to end.

    Trials that run now pause at their next rung. Then the finalists are verified.
    """
    from tune.resume import request_stop

    request_stop(run, storage, console)


@app.command("list")
def list_(storage: Storage = "runs") -> None:
    """List the runs, newest first."""
    from results.run.listing import list_runs
    from results.tables import runs_table

    runs = list_runs(storage)
    if runs:
        console.print(runs_table(runs))
    else:
        console.print(f"No runs in {storage} yet: start one with `preftune run quickstart`.")


@app.command()
def show(
    run: RunName = None,
    trial: Annotated[int | None, typer.Option(help="Number of a trial to show.")] = None,
    storage: Storage = "runs",
) -> None:
    """Show a run, or one of its trials.

    For a run: the data report, the leaderboard and the verdict.
    """
    from results.run.listing import open_run
    from results.tables import data_report_table, leaderboard_table, trial_detail, verdict_panel

    opened = open_run(run, storage)
    if trial is not None:
        console.print(trial_detail(opened, trial))
        return
    console.print(data_report_table(opened))
    console.print(leaderboard_table(opened))
    console.print(verdict_panel(opened))


@app.command()
def report(
    run: RunName = None,
    storage: Storage = "runs",
    png: Annotated[
        bool, typer.Option("--png", help="Also write PNG figures. Install preftune[png] first.")
    ] = False,
) -> None:
    """Write the report of a run: one HTML page.

    The page needs no network.
    """
    from results.report.page import write_figures, write_report
    from results.run.listing import open_run

    opened = open_run(run, storage)
    console.print(str(write_report(opened)), highlight=False, markup=False, soft_wrap=True)
    for path in write_figures(opened) if png else ():
        console.print(str(path), highlight=False, markup=False, soft_wrap=True)


@app.command()
def train(
    run: RunName = None,
    storage: Storage = "runs",
    address: Address = None,
) -> None:
    """Train the winner on all training pairs.

    It ends with a comparison: is the new model better than the winner?
    """
    from results.run.listing import open_run
    from tune.cluster.signals import resumable
    from tune.full_training import train_command, train_winner

    opened = open_run(run, storage)
    with resumable(train_command(opened.folder), errors):
        train_winner(opened, address, console)


@app.command()
def push(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Name or folder of a run.")],
    repo: Annotated[
        str, typer.Argument(metavar="REPO", help="Repository owner/name, or a local folder.")
    ],
    trial: Annotated[int | None, typer.Option(help="Number of a trial to publish instead.")] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Publish the model that `preftune train` made.")
    ] = False,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Publish the LoRA adapter alone.")
    ] = False,
    revision: Annotated[
        str | None,
        typer.Option(metavar="BRANCH", help="Branch of the repository. Created if missing."),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Make the repository private.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the files. Send nothing.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Publish without a passing verdict. The card says so.")
    ] = False,
    storage: Storage = "runs",
) -> None:
    """Publish the winner on the Hub, or in a local folder."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from results.publish.push import push as publish
    from results.publish.push import selected
    from results.publish.target import Target
    from results.run.listing import open_run

    opened = open_run(run, storage)
    chosen = selected(opened, trial, full, adapter)
    target = Target(repo, private, revision)
    result = publish(opened, target, chosen, dry_run=dry_run, force=force)
    _tell(result)
    if "front.png" not in result.files:
        console.print(
            "its card has no figure: drawing it takes Chrome or Chromium", highlight=False
        )


@app.command()
def push_data(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Name or folder of a run.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Data set repository owner/name.")],
    private: Annotated[
        bool, typer.Option("--private", help="Make the repository private.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the files. Send nothing.")
    ] = False,
    storage: Storage = "runs",
) -> None:
    """Publish the trials as a data set on the Hub.

    The votes from the chat are published with them.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from results.publish.push_data import push_data as publish
    from results.run.listing import open_run

    result = publish(open_run(run, storage), repo, private=private, dry_run=dry_run)
    _tell(result)


def _tell(result: "PushResult") -> None:
    """Print what was published, or would be."""
    what = result.what

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    for file, size in result.files.items():
        say(f"{size:>12,}  {file}")
    done = result.uploaded
    if done is None:
        say(f"{what} {'would go' if result.dry_run else 'published'} to {result.where}")
        return
    if done.committed:
        say(f"{what} published to {result.where} (commit {done.commit[:8]})")
    else:
        say(f"{what} is in {result.where} already: nothing to commit")
    say(f"tag {done.tag}" if done.tagged else f"tag {done.tag} was there")


@app.command()
def chat(
    run: Annotated[
        str | None,
        typer.Argument(metavar="RUN_OR_MODEL", help="A run or a model; by default the newest run."),
    ] = None,
    storage: Storage = "runs",
    port: Annotated[int, typer.Option(help="Port to listen at. 0 takes a free one.")] = 8501,
    host: Annotated[
        str, typer.Option(help="Address to listen at. There is no password.")
    ] = "127.0.0.1",
) -> None:
    """Serve the board and the chat, to open in a browser."""
    from tune.chat_command import open_page

    open_page(run, storage, port, host, console)


def main() -> None:
    """Run the command. What a user can cause is one sentence and an exit code."""
    from results.publish.hub_names import check_endpoint
    from search_spaces.errors import SpecError, UserError

    try:
        if address := os.environ.get("HF_ENDPOINT"):
            check_endpoint(address)  # the Hub client does not load with one that it cannot read
        app()
    except SpecError as error:
        _fail(str(error), 2)
    except UserError as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(text: str, code: int) -> None:
    errors.print(text, style="red", highlight=False, markup=False, soft_wrap=True)
    sys.exit(code)
