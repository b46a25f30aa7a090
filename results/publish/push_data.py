"""Publish a run's trials, and the votes cast in its chat, as a data set on the Hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from results.publish.hub_names import check_endpoint, check_name, tag_of, token_here
from results.publish.markdown import render
from results.publish.public_view import last_part, search_of
from results.publish.push import Access, PushResult, refuse_token, sizes
from results.publish.trial_data import curve_rows, parquet, trial_rows
from results.publish.upload import Upload, upload
from results.publish.votes import votes
from results.run.run import Run
from results.verdict_view import verdict_sentence
from search_spaces.errors import UserError

TRIALS, CURVES, PREFERENCES = "trials.parquet", "curves.parquet", "preferences.parquet"
OURS = frozenset({"README.md", TRIALS, CURVES, PREFERENCES})


def push_data(
    run: Run,
    repo: str,
    *,
    private: bool = False,
    dry_run: bool = False,
    access: Access | None = None,
) -> PushResult:
    """Publish the trials of a run as a data set, with the chat's votes where there are any.

    Args:
        run: an opened run.
        repo: `name/repo` on the Hub.
        private: make the repository private; refused where it exists and is public.
        dry_run: only list what would leave; needs neither the network nor a token.
        access: how the Hub is reached.

    Raises:
        UserError: there are no trials, a vote is damaged, or the Hub refused.
    """
    check_name(repo, or_folder=False)
    contents = data_files(run, repo)
    what, access = f"the trials of {run.name}", access or Access()
    if dry_run:
        return PushResult(what, repo, sizes(contents), None, True)
    check_endpoint(access.endpoint)
    token = token_here(access.token)
    refuse_token(contents, token)
    done = upload(
        Upload(
            repo=repo,
            kind="dataset",
            contents=contents,
            ours=OURS.__contains__,
            mark=TRIALS,
            tag=tag_of(run.name),
            message=f"Publish the trials of preftune run {run.name}",
            private=private,
        ),
        token,
        access.endpoint,
    )
    return PushResult(what, done.url, sizes(contents), done, False)


def data_files(run: Run, repo: str) -> dict[str, Path | bytes]:
    """The files of the data set: file name -> bytes.

    Raises:
        UserError: there are no trials, or a vote is damaged.
    """
    trials, curves, cast = trial_rows(run), curve_rows(run), votes(run)
    if not trials:
        raise UserError(f"Run {run.name} has no trials to publish yet.")
    rows: Mapping[str, list[dict[str, Any]]] = {
        TRIALS: trials,
        CURVES: curves,
        PREFERENCES: [dict(vote) for vote in cast],
    }
    files: dict[str, Path | bytes] = {name: parquet(table) for name, table in rows.items() if table}
    card = _card(run, repo, {name: len(rows[name]) for name in files})
    return {"README.md": card.encode(), **files}


def _card(run: Run, repo: str, counts: Mapping[str, int]) -> str:
    from huggingface_hub import DatasetCardData

    configs: list[dict[str, Any]] = [
        {"config_name": Path(name).stem, "data_files": name} for name in counts
    ]
    configs[0]["default"] = True
    data = DatasetCardData(
        pretty_name=f"Trials of {last_part(run.name)}",
        tags=["preftune", "dpo", "hyperparameter-search"],
        configs=configs,
    )
    return render(
        "data_card.jinja",
        card_data=data.to_yaml(),
        repo=repo,
        run=run.name,
        search=search_of(run),
        sentence=verdict_sentence(run) if run.verdict() else None,
        counts={Path(name).stem: number for name, number in counts.items()},
    )
