"""What a card says in words and in rows; every name in it fit for Markdown."""

from collections.abc import Mapping
from typing import Any

from results.formatting import compact, ending, interval, measure, verdict_sentence
from results.publish.licence import Licence
from results.publish.markdown import cell, code, literal
from results.publish.public_view import Candidate, Part, hub_id, name_of
from results.run.run import Run
from results.views import leaderboard

ROWS = 10  # of the leaderboard


def figures_of(chosen: Candidate, verdict: Mapping[str, Any], full: bool) -> str:
    """Of which trial the figures are, and on what they were measured."""
    prompts, pairs = (verdict.get(key, "?") for key in ("test_prompts", "test_pairs"))
    of = " trained on all pairs" if full else ""
    touched = "on which the search was verified" if full else "touched once"
    where = f"{prompts} prompts and {pairs} pairs of the test split, {touched}"
    if chosen.split != "test":
        where = "the validation split, on which the search chose: nothing was verified"
    return f"Of trial {chosen.number}{of}, measured on {where}."


def finalists(verdict: Mapping[str, Any]) -> list[list[str]]:
    """Each finalist's gain over the reference on the test split, and that of its fresh seeds."""
    return [
        [
            str(one.get("number")),
            interval(one.get("difference"), one.get("interval"), 3),
            interval(one.get("configuration_difference"), one.get("configuration_interval"), 3),
            "yes" if one.get("beats_reference") else "no",
        ]
        for one in verdict.get("finalists") or []
    ]


def limits(run: Run, chosen: Candidate) -> list[str]:
    """What the figures do not say."""
    told = []
    judge = run.spec.get("judge")
    if judge:
        told.append(
            "`win_rate` and `judge_score` are the opinion of one judge, "
            f"{named(run, 'judge')}: what it cannot tell, they do not measure. Nothing "
            "here was rated by people."
        )
    else:
        told.append("There was no judge: nothing here says how good the answers read.")
    tokens = (run.spec.get("evaluation") or {}).get("max_new_tokens")
    if tokens:
        told.append(f"Answers were sampled at temperature 1 and cut at {tokens} tokens.")
    told.append(
        f"Prompts and pairs are of one data set, {named(run, 'dataset')}; on others, and on "
        "safety, facts and other languages, nothing was measured."
    )
    if chosen.split != "test":
        told.append("The figures are those by which the search chose, and so too good.")
    return told


def verdict_words(run: Run) -> str:
    """The verdict in a sentence, without what a failed run said: it may name paths and hosts."""
    if run.verdict() is None and run.state == "failed":
        return "The run failed before its verdict."
    return verdict_sentence(run)


def space(run: Run) -> list[tuple[str, str]]:
    """Each searched field and its domain, as cells of a table."""
    searched = run.spec.get("space") or {}
    return [(cell(name), cell(_domain(domain))) for name, domain in searched.items()]


def _domain(domain: object) -> str:
    """A domain as it reads: loguniform 1e-5 to 0.003."""
    if not isinstance(domain, Mapping) or len(domain) != 1:
        return compact(domain)
    ((kind, values),) = domain.items()
    if kind == "choice" and isinstance(values, list):
        return ", ".join(compact(value) for value in values)
    if isinstance(values, list) and len(values) == 2:
        return f"{kind} {compact(values[0])} to {compact(values[1])}"
    return f"{kind} {compact(values)}"


def budget(run: Run) -> str:
    """What the search could spend, in a sentence."""
    search, budget = run.spec.get("search") or {}, run.spec.get("budget") or {}
    each = f"{compact(budget.get('pairs') or budget.get('steps') or '?')}"
    unit = "steps" if budget.get("steps") else "pairs"
    rungs = search.get("rungs") or []
    at = f", with rungs at {', '.join(compact(r) for r in rungs)} pairs" if rungs else ""
    by = search.get("sampler") or "tpe"
    how = "none" if search.get("scheduler") == "none" else "asha"
    limits = (run.spec.get("objective") or {}).get("constraints") or {}
    bounds = [
        f"{name} {'≤' if side == 'max' else '≥'} {compact(value)}"
        for name, bound in limits.items()
        if isinstance(bound, Mapping)
        for side, value in bound.items()
        if value is not None
    ]
    within = f", within {' and '.join(bounds)}" if bounds else ""
    return literal(
        f"The objective was {run.metric}{within}. Each trial could see up to {each} {unit}{at}; "
        f"sampler {by}, scheduler {how}, {len(run.trials())} trials."
    )


def licence_words(licence: Licence) -> str:
    """Under which licence the model stands, or where to look."""
    title = licence.model.get("license_name") or licence.model.get("license")
    link = licence.model.get("license_link")
    words = "Licence: see the base model."
    if title:
        named = f"[{literal(title)}](<{link}>)" if link else code(title)
        words = f"The base model's licence is {named}, and this model inherits it."
    if licence.dataset:
        words += f" The data set's is {code(licence.dataset)}."
    return words


def named(run: Run, part: Part) -> str:
    """A run's model, data set or judge as it is cited: a link to the Hub, or a local name."""
    if hub := hub_id(run, part):
        kind = "datasets/" if part == "dataset" else ""
        return f"[{literal(hub)}](https://huggingface.co/{kind}{hub})"
    return code(name_of(run, part))


def base_model(run: Run) -> str:
    """What the training started from."""
    name = named(run, "model")
    return (
        f"{name} (after a supervised pass over the chosen answers)" if run.spec.get("sft") else name
    )


def rows(run: Run) -> list[list[str]]:
    """The top of the leaderboard, as cells of a table."""
    return [
        [
            str(trial.number),
            ending(trial, run),
            str(trial.pairs),
            *(cell(compact(trial.params.get(name, "-"))) for name in run.searched),
            measure(trial.measures, run.metric),
            measure(trial.measures, "kl"),
        ]
        for trial in leaderboard(run)[:ROWS]
    ]
