"""The model card of a published model: what was measured, in metadata and in words."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from results.doctor import Finding, of_data, of_trial
from results.publish import Candidate, candidate, hub_id, public_name
from results.run import Run, leaderboard
from results.trl_config import dpo_yaml
from results.words import compact, ending, judged, measure, verdict_sentence

TEMPLATE = Path(__file__).with_name("card.jinja")
FIGURES = ("win_rate", "judge_score", "kl", "pair_loss", "accuracy", "length_ratio", "ended")
ROWS = 5
VERSIONS = ("preftune", "trl", "transformers", "torch")


def model_card(
    run: Run,
    trial: int | None = None,
    repo: str | None = None,
    full: Mapping[str, Any] | None = None,
) -> str:
    """Write the `README.md` of the winner's model, or of the given trial's.

    Args:
        run: an opened run.
        trial: a trial other than the winner.
        repo: where the model will be found; default: the folder `best` or `full` of the run.
        full: what `full.json` says, for the winner trained on all pairs.

    Raises:
        UserError: the verdict names no winner and no trial was given.
    """
    from huggingface_hub import ModelCard

    chosen = candidate(run, trial)
    if full:
        chosen = replace(chosen, measures=full["test"], passing=full["passing"])
    verdict = run.verdict() or {}
    base, dataset = _base(run), _dataset(run)
    judge = run.spec.get("judge")
    prompts, pairs = (verdict.get(key, "?") for key in ("test_prompts", "test_pairs"))
    of = " trained on all pairs" if full else ""
    touched = "on which the search was verified" if full else "touched once"
    where = f"{prompts} prompts and {pairs} pairs of the test split, {touched}"
    if chosen.split != "test":
        where = "the validation split, on which the search chose: nothing was verified"
    versions = run.info.get("versions") or {}
    content = ModelCard.from_template(
        _metadata(run, chosen, repo),
        template_path=str(TEMPLATE),
        title=repo or run.name,
        sentence=full["sentence"] if full else verdict_sentence(run),
        judged=None if full else judged(verdict, chosen.number),
        passing=chosen.passing,
        base=base,
        dataset=dataset,
        all_pairs=f"{full['pairs']:,}" if full else None,
        trials=len(run.trials()),
        judge=f"Answers were judged by {public_name(judge)}." if judge else "There was no judge.",
        figures_of=f"Of trial {chosen.number}{of}, measured on {where}.",
        figures=[
            (name, measure(chosen.reference, name), measure(chosen.measures, name))
            for name in FIGURES
            if measure(chosen.measures, name) != "-"
        ],
        wary=_wary(run, chosen, full),
        wary_of=f"In the measures of the {'test' if full else 'validation'} split and in the data:",
        repo=repo or ("full" if full else "best"),
        params=[(name, _cell(compact(value))) for name, value in _fields(run, chosen).items()],
        searched=run.searched,
        metric=run.metric,
        rows=_rows(run),
        versions=", ".join(f"{name} {versions[name]}" for name in VERSIONS if versions.get(name)),
    )
    return str(content)


def published_texts(
    run: Run,
    trial: int | None = None,
    repo: str | None = None,
    full: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """The two files that are written rather than copied: file name -> text."""
    return {
        "README.md": model_card(run, trial, repo, full),
        "dpo.yaml": dpo_yaml(run, trial, full["pairs"] if full else None),
    }


def _metadata(run: Run, chosen: Candidate, repo: str | None) -> Any:
    from huggingface_hub import EvalResult, ModelCardData

    spec_dataset = run.spec.get("dataset") or {}
    dataset = hub_id(spec_dataset.get("path"))
    base = hub_id((run.info.get("model") or {}).get("path") or run.spec.get("model"))
    name = public_name(spec_dataset.get("path"))
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=dataset or "preftune",
            dataset_name=name,
            dataset_split=chosen.split,
            metric_type=metric,
            metric_name=metric,
            metric_value=round(float(chosen.measures[metric]), 4),
        )
        for metric in FIGURES
        if measure(chosen.measures, metric) != "-"
    ]
    return ModelCardData(
        base_model=base,
        datasets=[dataset] if dataset else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["preftune", "trl", "dpo"],
        model_name=(repo or run.name).split("/")[-1],
        eval_results=results or None,
    )


def _fields(run: Run, chosen: Candidate) -> dict[str, Any]:
    """The searched fields, then those that were the same in every trial."""
    lora = {f"lora.{name}": value for name, value in (run.spec.get("lora") or {}).items()}
    fixed = {**(run.spec.get("training") or {}), **lora}
    return chosen.params | {k: v for k, v in fixed.items() if k not in chosen.params}


def _base(run: Run) -> str:
    path = (run.info.get("model") or {}).get("path") or run.spec.get("model")
    name = f"[{path}](https://huggingface.co/{path})" if hub_id(path) else f"`{public_name(path)}`"
    return (
        f"{name} (after a supervised pass over the chosen answers)" if run.spec.get("sft") else name
    )


def _dataset(run: Run) -> str:
    path = (run.spec.get("dataset") or {}).get("path")
    if hub_id(path):
        return f"[{path}](https://huggingface.co/datasets/{path})"
    return f"`{public_name(path)}`"


def _wary(run: Run, chosen: Candidate, full: Mapping[str, Any] | None) -> list[Finding]:
    """What the doctor finds in the published weights and in the data."""
    trial = run.trial(chosen.number)
    if full:  # other weights than the trial's: of the trial's limits and crashes they know nothing
        trial = replace(trial, measures=full["test"], constraints={}, attrs={})
    return [*of_trial(run, trial), *of_data(run)]


def _rows(run: Run) -> list[list[str]]:
    return [
        [
            str(trial.number),
            ending(trial, run),
            str(trial.pairs),
            *(_cell(compact(trial.params.get(name, "-"))) for name in run.searched),
            measure(trial.measures, run.metric),
            measure(trial.measures, "kl"),
        ]
        for trial in leaderboard(run)[:ROWS]
    ]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
