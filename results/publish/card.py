"""The model card of a published model; its sentences are in `card.jinja`."""

import shlex
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from results import verdict_view, views
from results.doctor.data_warnings import data_warnings
from results.doctor.finding import Finding
from results.doctor.trial_warnings import trial_warnings
from results.formatting import finalist_of, measure
from results.publish.dpo_yaml import dpo_yaml
from results.publish.licence import Licence, recorded
from results.publish.markdown import render
from results.publish.public_view import Candidate, candidate, hub_id, last_part, name_of, search_of
from results.publish.spec_yaml import spec_yaml
from results.publish.target import Target
from results.run.run import Run

FIGURES = ("win_rate", "judge_score", "kl", "pair_loss", "accuracy", "length_ratio", "ended")
ROWS = 10  # of the leaderboard


def model_card(
    run: Run,
    chosen: Candidate | None = None,
    target: Target | None = None,
    licence: Licence | None = None,
    figure: bool = False,
) -> str:
    """Write the `README.md` of a model.

    Args:
        run: an opened run.
        chosen: the model; default: the winner's.
        target: where it will be found; default: the folder `best` or `full` of the run.
        licence: of base and data set; default: what the run has recorded.
        figure: `front.png` is beside the card.

    Raises:
        UserError: the verdict names no winner and no model was given.
    """
    chosen, licence = chosen or candidate(run), licence or recorded(run)
    repo = target.repo if target else None
    home = repo or ("full" if chosen.full else "best")
    branch = target.branch if target else None
    of_branch = ["--revision", branch] if branch else []
    verdict = run.verdict() or {}
    board = views.leaderboard(run)
    return render(
        "card.jinja",
        card_data=_metadata(run, chosen, repo, licence).to_yaml(),
        title=repo or run.name,
        chosen=chosen,
        sentence=verdict_view.full_sentence(chosen.full) if chosen.full else _sentence(run),
        judged=None if chosen.full else verdict_view.judged(verdict, chosen.number),
        search=search_of(run),
        prompts=verdict.get("test_prompts", "?"),
        pairs=verdict.get("test_pairs", "?"),
        figures=_figures(verdict, chosen),
        verdict=verdict_view.verdict(run),
        confidence=f"{100 * float(verdict.get('confidence') or 0):g}",
        warnings=_warnings(run, chosen),
        home=home,
        revision=branch,
        # The chat takes a repository's main branch.
        chat=None if branch else shlex.join(["preftune", "chat", home]),
        download=shlex.join(["hf", "download", repo, "spec.yaml", *of_branch, "--local-dir", "."])
        if repo
        else None,
        fields=_fields(run, chosen),
        board=replace(board, rows=board.rows[:ROWS]),
        figure=figure,
        licence=licence,
        versions=run.info.get("versions") or {},
        commit=run.info.get("commit"),
        spec=bool(run.spec),
    )


def published_texts(
    run: Run,
    chosen: Candidate | None = None,
    target: Target | None = None,
    licence: Licence | None = None,
    figure: bool = False,
) -> dict[str, str]:
    """The files that are written rather than copied: file name -> text. Arguments: `model_card`."""
    chosen = chosen or candidate(run)
    texts = {
        "README.md": model_card(run, chosen, target, licence, figure),
        "dpo.yaml": dpo_yaml(run, chosen),
    }
    spec = spec_yaml(run)
    return texts if spec is None else texts | {"spec.yaml": spec}


def _sentence(run: Run) -> str:
    """The verdict, without the error of a failed run: that may name paths and hosts."""
    if run.verdict() is None and run.state == "failed":
        return "The run failed before its verdict."
    return verdict_view.verdict_sentence(run)


def _metadata(run: Run, chosen: Candidate, repo: str | None, licence: Licence) -> Any:
    from huggingface_hub import EvalResult, ModelCardData

    spec_dataset = run.spec.get("dataset") or {}
    dataset, base = hub_id(run, "dataset"), hub_id(run, "model")
    config = spec_dataset.get("name")
    revision = ((run.data_report() or {}).get("source") or {}).get("revision")
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=dataset or "preftune",
            dataset_name=name_of(run, "dataset"),
            dataset_config=config and last_part(config),
            dataset_split=chosen.split,
            dataset_revision=revision if dataset else None,
            metric_type=metric,
            metric_name=metric,
            metric_value=round(float(chosen.measures[metric]), 4),
        )
        for metric in FIGURES
        if measure(chosen.measures, metric) != "-"
    ]
    return ModelCardData(
        base_model=base,
        # Said, since the Hub would have to guess it.
        base_model_relation=("adapter" if chosen.adapter else "finetune") if base else None,
        datasets=[dataset] if dataset else None,
        library_name="peft" if chosen.adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["preftune", "trl", "dpo", *(["lora"] if run.spec.get("lora") else [])],
        model_name=(repo or run.name).split("/")[-1],
        eval_results=results or None,
        **cast(dict[str, Any], licence.model),
    )


def _figures(verdict: Mapping[str, Any], chosen: Candidate) -> list[list[str]]:
    """Rows of measures: the reference's, of a model trained on all pairs the winner's, its own."""
    winner = finalist_of(verdict, chosen.number).get("test") or {}
    compared = [chosen.reference, *([winner] if chosen.full else [])]
    return [
        [name, *(measure(measures, name) for measures in (*compared, chosen.measures))]
        for name in FIGURES
        if measure(chosen.measures, name) != "-"
    ]


def _fields(run: Run, chosen: Candidate) -> dict[str, Any]:
    """The searched fields, then those that were the same in every trial."""
    lora = {f"lora.{name}": value for name, value in (run.spec.get("lora") or {}).items()}
    fixed = {**(run.spec.get("training") or {}), **lora}
    return chosen.params | {k: v for k, v in fixed.items() if k not in chosen.params}


def _warnings(run: Run, chosen: Candidate) -> list[Finding]:
    """The warnings about the published weights and about the data."""
    # What an exception said may hold paths of this machine.
    trial = replace(run.trial(chosen.number), cause=None)
    if chosen.full:  # other weights than the trial's, without its limits and crashes
        trial = replace(trial, measures=chosen.measures, constraints={}, attrs={})
    return [*trial_warnings(run, trial), *data_warnings(run)]
