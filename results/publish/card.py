"""The model card of a published model: what was measured, in metadata and in words."""

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from results.doctor.data_warnings import of_data
from results.doctor.finding import Finding
from results.doctor.trial_warnings import of_trial
from results.formatting import compact, judged, measure
from results.publish.card_words import (
    base_model,
    budget,
    figures_of,
    finalists,
    licence_words,
    limits,
    named,
    rows,
    space,
    verdict_words,
)
from results.publish.dpo_yaml import dpo_yaml
from results.publish.licence import Licence, recorded
from results.publish.markdown import cell, code, literal
from results.publish.public_view import Candidate, candidate, hub_id, last_part, name_of
from results.publish.spec_yaml import spec_yaml
from results.run.run import Run

TEMPLATE = Path(__file__).with_name("card.jinja")
FIGURES = ("win_rate", "judge_score", "kl", "pair_loss", "accuracy", "length_ratio", "ended")


def model_card(
    run: Run,
    trial: int | None = None,
    repo: str | None = None,
    full: Mapping[str, Any] | None = None,
    *,
    revision: str | None = None,
    adapter: bool = False,
    licence: Licence | None = None,
    figure: bool = False,
) -> str:
    """Write the `README.md` of the winner's model, or of the given trial's.

    Args:
        run: an opened run.
        trial: a trial other than the winner.
        repo: where the model will be found; default: the folder `best` or `full` of the run.
        full: what `full.json` says, for the winner trained on all pairs.
        revision: the branch that it is pushed to, where that is not the main one.
        adapter: the model is a LoRA adapter alone.
        licence: of base and data set; default: what the run has recorded.
        figure: `front.png` stands beside the card.

    Raises:
        UserError: the verdict names no winner and no trial was given.
    """
    from huggingface_hub import ModelCard

    chosen = candidate(run, trial)
    if full:
        chosen = replace(chosen, measures=full["test"], passing=full["passing"])
    licence = licence or recorded(run)
    verdict = run.verdict() or {}
    judge = run.spec.get("judge")
    told = None if full else judged(verdict, chosen.number)
    home = repo or ("full" if full else "best")
    branch = None if revision == "main" else revision
    of_branch = ["--revision", branch] if branch else []
    content = ModelCard.from_template(
        _metadata(run, chosen, repo, adapter, licence),
        template_path=str(TEMPLATE),
        title=literal(repo or run.name),
        sentence=literal(full["sentence"] if full else verdict_words(run)),
        judged=literal(told) if told else None,
        passing=chosen.passing,
        base=base_model(run),
        dataset=named(run, "dataset"),
        adapter=adapter,
        all_pairs=f"{full['pairs']:,}" if full else None,
        trials=len(run.trials()),
        judge=f"Answers were judged by {named(run, 'judge')}." if judge else "There was no judge.",
        figures_of=literal(figures_of(chosen, verdict, bool(full))),
        figures=[
            (name, measure(chosen.reference, name), measure(chosen.measures, name))
            for name in FIGURES
            if measure(chosen.measures, name) != "-"
        ],
        finalists=finalists(verdict),
        confidence=f"{100 * float(verdict.get('confidence') or 0):g}",
        wary=[(literal(f.sign), literal(f.sentence)) for f in _wary(run, chosen, full)],
        wary_of=f"In the measures of the {'test' if full else 'validation'} split and in the data:",
        limits=limits(run, chosen),
        repo=home,
        revision=branch,
        # The chat takes a repository's main branch.
        command=None if branch else shlex.join(["preftune", "chat", home]),
        download=shlex.join(["hf", "download", repo, "spec.yaml", *of_branch, "--local-dir", "."])
        if repo
        else None,
        params=[(cell(name), cell(compact(value))) for name, value in _fields(run, chosen).items()],
        space=space(run),
        budget=budget(run),
        searched=[cell(name) for name in run.searched],
        metric=run.metric,
        figure=figure,
        rows=rows(run),
        licence=licence_words(licence),
        versions=[
            (cell(name), cell(version))
            for name, version in (run.info.get("versions") or {}).items()
        ],
        made_by=_commit(run),
        spec=bool(run.spec),
    )
    return str(content)


def published_texts(
    run: Run,
    trial: int | None = None,
    repo: str | None = None,
    full: Mapping[str, Any] | None = None,
    *,
    revision: str | None = None,
    adapter: bool = False,
    licence: Licence | None = None,
    figure: bool = False,
) -> dict[str, str]:
    """The files that are written rather than copied: file name -> text."""
    card = model_card(
        run,
        trial,
        repo,
        full,
        revision=revision,
        adapter=adapter,
        licence=licence,
        figure=figure,
    )
    texts = {
        "README.md": card,
        "dpo.yaml": dpo_yaml(run, trial, full["pairs"] if full else None),
    }
    spec = spec_yaml(run)
    return texts if spec is None else texts | {"spec.yaml": spec}


def _metadata(
    run: Run, chosen: Candidate, repo: str | None, adapter: bool, licence: Licence
) -> Any:
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
        base_model_relation=("adapter" if adapter else "finetune") if base else None,
        datasets=[dataset] if dataset else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["preftune", "trl", "dpo", *(["lora"] if run.spec.get("lora") else [])],
        model_name=(repo or run.name).split("/")[-1],
        eval_results=results or None,
        **cast(dict[str, Any], licence.model),
    )


def _commit(run: Run) -> str | None:
    commit = run.info.get("commit")
    return code(commit) if commit else None


def _fields(run: Run, chosen: Candidate) -> dict[str, Any]:
    """The searched fields, then those that were the same in every trial."""
    lora = {f"lora.{name}": value for name, value in (run.spec.get("lora") or {}).items()}
    fixed = {**(run.spec.get("training") or {}), **lora}
    return chosen.params | {k: v for k, v in fixed.items() if k not in chosen.params}


def _wary(run: Run, chosen: Candidate, full: Mapping[str, Any] | None) -> list[Finding]:
    """What the doctor finds in the published weights and in the data."""
    # What an exception said may hold paths of this machine.
    trial = replace(run.trial(chosen.number), cause=None)
    if full:  # other weights than the trial's: of the trial's limits and crashes they know nothing
        trial = replace(trial, measures=full["test"], constraints={}, attrs={})
    return [*of_trial(run, trial), *of_data(run)]
