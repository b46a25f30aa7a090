"""`preftune run` and `preftune resume`: the stages of a search, one after the other."""

from contextlib import suppress
from pathlib import Path

from ray.exceptions import RayError, RayTaskError
from ray.tune import TuneError
from rich.console import Console
from rich.markup import escape

from results.run import layout
from results.run.commands import command_line
from results.run.listing import open_run
from results.run.run import Run
from results.tables import leaderboard_table, verdict_panel
from search_spaces.errors import UserError
from search_spaces.spec import Spec
from trainables.artifacts import storage_fault
from tune.cluster.checkpoint_storage import NotReached, settle
from tune.cluster.connection import Cluster, connected
from tune.cluster.preemption import preemptible
from tune.cluster.resources import plan_share
from tune.cluster.shipping import Shipment, shipping
from tune.context import Context
from tune.inputs import Inputs, judge_files, look_up
from tune.prepare import Preparation, prepare, recorded
from tune.progress import Progress
from tune.record import Record, now, resume_command
from tune.search import search
from tune.study import Study
from tune.verify import verify
from tune.warm_start import earlier_run, warm_study


def run_search(spec: Spec, record: Record, address: str | None, console: Console) -> None:
    """Run all the stages that the run folder does not hold yet.

    Raises:
        UserError: something that the user can fix; the run folder says it too.
        KeyboardInterrupt: Ctrl-C, or a signal that is taken for it; the run can be resumed.
    """
    _print_line(console, "run", str(record.folder))
    # At the start: who is killed, or dies with Ray's own processes, prints nothing at the end.
    _print_line(console, "resume", resume_command(record.folder))
    try:
        settle(spec, record)
        earlier = earlier_run(spec, record)
        known = recorded(spec, record) or look_up(spec, record.info.get("revisions"))
        with connected(address) as cluster, shipping(cluster, record) as sent:
            _stages(spec, known, earlier, record, cluster, sent, console)
    except KeyboardInterrupt:
        if record.info["state"] not in layout.ENDED:  # it may come while Ray shuts down
            record.update(state="interrupted", ended=now())
        raise
    except Exception as error:
        sentence = _sentence(error, record.folder)
        if sentence is None:
            raise  # a mistake of ours: its traceback says more than a sentence
        with suppress(OSError):  # it may be the very fault that is being reported
            record.update(state="failed", error=sentence, ended=now())
        raise UserError(sentence) from error


def _sentence(error: Exception, folder: Path) -> str | None:
    """Return an error's message for the user, or None where no user can cause the error."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, UserError):
        error = error.cause  # Ray's own text of it is a traceback
    resume = f"continue with `{resume_command(folder)}`"
    # What scheduler or searcher raise comes out of Ray Tune as an error of its own.
    cause = error.__context__ if isinstance(error, TuneError) else error
    if isinstance(cause, NotReached) or (isinstance(cause, UserError) and cause is not error):
        return f"{cause}. Make room or fix it, then {resume}"
    if isinstance(error, UserError):
        return str(error)
    if fault := storage_fault(error):
        return (
            f"the storage of {folder} cannot be used ({fault}). Make room or fix it, then {resume}"
        )
    if isinstance(error, OSError):
        return f"{folder} cannot be read or written ({error}). Fix it, then {resume}"
    if isinstance(error, RayError | TuneError):
        last = str(error).strip().splitlines()[-1]
        return f"a process of Ray failed ({last}): its logs are under /tmp/ray; {resume}"
    return None


def _stages(
    spec: Spec,
    known: Preparation | Inputs,
    earlier: Run | None,
    record: Record,
    cluster: Cluster,
    sent: Shipment,
    console: Console,
) -> None:
    def say(text: str) -> None:
        console.print(f"[dim]{escape(text)}[/dim]", highlight=False, soft_wrap=True)

    if cluster.dashboard:
        # Ray asks for its token: an address alone would lead to a page that says 401.
        token = "(its token: `ray get-auth-token`)"
        _print_line(console, "dashboard", f"{cluster.dashboard} {token}")
    record.update(state="preparing", error=None, ended=None, dashboard=cluster.dashboard)
    record.update(
        hardware={"nodes": len(cluster.nodes), "cpus": cluster.cpus, "gpus": cluster.gpus}
    )
    with record.timed("prepare"):
        prepared = (
            prepare(spec, known, record, cluster, sent, say) if isinstance(known, Inputs) else known
        )
    study = warm_study(spec, record, earlier) if earlier else Study(spec, record.folder)
    if earlier:
        taken = record.info["warm_start"]
        say(f"taken from run {earlier.name}: {taken['taken']} trials, {taken['left_out']} left out")
    sent.add([*prepared.files(), *judge_files(spec)])
    record.update(state="searching")
    minutes, spent = spec.search.minutes, record.seconds.get("search", 0.0)
    if minutes is not None and spent >= 60 * minutes:
        say(
            f"search.minutes ({minutes:g}) are used up: no more trials, only verification. To add "
            f"some: `{resume_command(record.folder)} --minutes +60`"
        )
    each = plan_share(spec, cluster, prepared.search, sent)
    say(f"searching: {spec.trials} trials, {each.concurrent} at once, {each.described()}")
    context = Context(spec, record, study, prepared, sent, each)
    progress = Progress(console, spec, record, study)
    with record.timed("search"), progress, preemptible(say) as preemption:
        search(context, progress, preemption)
    record.update(state="verifying")
    say("verifying the finalists on the test split")
    with record.timed("verify"):
        with preemptible(say) as preemption:
            verify(context, progress, preemption)
    stopped = study.started() < spec.trials or bool(study.unfinished())
    record.update(state="stopped" if stopped else "done", ended=now())
    show_outcome(record.folder, console)


def show_outcome(folder: Path, console: Console) -> None:
    """Print leaderboard, verdict and the lines that lead on."""
    run = open_run(folder)
    console.print(leaderboard_table(run))
    console.print(verdict_panel(run))
    lines = {"details": ["show"], "report": ["report"], "chat": ["chat"]}
    if (run.verdict() or {}).get("passing"):
        lines["publish"] = ["push", "YOUR_NAME/MODEL"]
    for label, (verb, *arguments) in lines.items():
        _print_line(console, label, command_line(verb, folder, *arguments))


def _print_line(console: Console, label: str, text: str) -> None:
    """Print a labelled line that the user can copy: no line break of ours is in it."""
    console.print(f"{label:<11}{text}", highlight=False, markup=False, soft_wrap=True)
