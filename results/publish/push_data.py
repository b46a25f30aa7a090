"""Publish a run's trials, and the votes cast in its chat, as a data set on the Hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from results.publish.card_words import base_model, budget, named
from results.publish.hub_names import check_endpoint, check_name, tag_of, token_here
from results.publish.markdown import cell, code, literal
from results.publish.public_view import last_part
from results.publish.push import PushResult, refuse_token, sizes
from results.publish.trial_data import curve_rows, parquet, trial_rows
from results.publish.upload import Upload, upload
from results.publish.votes import votes
from results.run.run import Run
from search_spaces.errors import UserError

TEMPLATE = Path(__file__).with_name("data_card.jinja")
TRIALS, CURVES, PREFERENCES = "trials.parquet", "curves.parquet", "preferences.parquet"
OURS = frozenset({"README.md", TRIALS, CURVES, PREFERENCES})
ABOUT = {
    "number": "Optuna's number of the trial",
    "state": "complete, stopped, infeasible, failed, running or waiting",
    "ended": "why it ended, in a word or two",
    "winner": "whether the verdict names it",
    "pairs": "preference pairs seen until the last rung reached",
    "value": "the objective there",
    "params_...": "the searched hyperparameters, by their DPOConfig and LoraConfig names",
    "kl": "nats per answer, from the reference",
    "win_rate": "share of sampled answers that the judge prefers to the reference's",
}


def push_data(
    run: Run,
    repo: str,
    *,
    private: bool = False,
    dry_run: bool = False,
    token: str | None = None,
    endpoint: str | None = None,
) -> PushResult:
    """Publish the trials of a run as a data set, with the chat's votes where there are any.

    Args:
        run: an opened run.
        repo: `name/repo` on the Hub.
        private: make the repository private; refused where it exists and is public.
        dry_run: only tell what would leave; needs neither the network nor a token.
        token: a Hub token; default: the one of `hf auth login` or HF_TOKEN.
        endpoint: the Hub's address; default: huggingface_hub's.

    Raises:
        UserError: there are no trials, a vote is damaged, or the Hub refused.
    """
    check_name(repo, or_folder=False)
    contents = data_files(run, repo)
    if dry_run:
        return PushResult(repo, sizes(contents), None, True, None)
    check_endpoint(endpoint)
    token = token_here(token)
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
        endpoint,
    )
    return PushResult(done.url, sizes(contents), done, False, None)


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
    files: dict[str, Path | bytes] = {name: parquet(some) for name, some in rows.items() if some}
    card = _card(run, repo, {name: len(rows[name]) for name in files})
    return {"README.md": card.encode(), **files}


def _card(run: Run, repo: str, counts: Mapping[str, int]) -> str:
    from huggingface_hub import DatasetCard, DatasetCardData

    configs: list[dict[str, Any]] = [
        {"config_name": Path(name).stem, "data_files": name} for name in counts
    ]
    configs[0]["default"] = True
    data = DatasetCardData(
        pretty_name=f"Trials of {last_part(run.name)}",
        tags=["preftune", "dpo", "hyperparameter-search"],
        configs=configs,
    )
    return str(
        DatasetCard.from_template(
            data,
            template_path=str(TEMPLATE),
            title=literal(repo),
            repo=repo,
            run=code(run.name),
            base=base_model(run),
            dataset=named(run, "dataset"),
            searched=budget(run),
            sentence=literal((run.verdict() or {}).get("sentence") or ""),
            counts=[(code(Path(name).stem), number) for name, number in counts.items()],
            votes=counts.get(PREFERENCES),
            about=[(cell(name), what) for name, what in ABOUT.items()],
        )
    )
