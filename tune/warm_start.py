"""`search.warm_start`: the trials of an earlier run, taken into a new search before its own."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState, create_trial

from results.run import layout
from results.run.commands import command_line
from results.run.journal import open_study
from results.run.listing import open_run
from results.run.run import Run
from search_spaces.choices import decode, encode
from search_spaces.errors import UserError
from search_spaces.optuna_space import distributions
from search_spaces.spec import Spec, load
from trainables.artifacts import META, damage
from tune.cluster.checkpoint_storage import TRIAL, Checkpoints, opened
from tune.record import Record, place_of, read_decisions
from tune.study import ABSOLUTE, TAKEN_FROM, Study, relative

# What has to be equal for two trials to be measured by the same yardstick.
SECTIONS = ("model", "revision", "dataset", "sft", "judge", "objective", "evaluation", "budget")


def settled(spec: Spec) -> Spec:
    """Return the search with `search.warm_start` as the folder that it means now.

    Before the search's own run exists, which would be `latest`, and would be among the runs
    that there are.

    Raises:
        UserError: as `_usable` raises it.
    """
    if spec.search.warm_start is None:
        return spec
    folder = _usable(spec, spec.search.warm_start).folder
    search = spec.search.model_copy(update={"warm_start": str(folder)})
    return spec.model_copy(update={"search": search})


def earlier_run(spec: Spec, record: Record) -> Run | None:
    """Return the run to take trials from, or None where none is asked for or it is done already.

    Raises:
        UserError: as `_usable` raises it.
    """
    name = spec.search.warm_start
    return None if name is None or record.info.get("warm_start") else _usable(spec, name)


def _usable(spec: Spec, name: str) -> Run:
    """Open the run to take trials from.

    Raises:
        UserError: there is no such run, it is still running, or what it measured is not what this
            search measures.
    """
    try:
        run = open_run(name, spec.storage)
    except UserError as error:
        raise UserError(f"search.warm_start: {error}") from error
    if run.active:
        raise UserError(
            f"search.warm_start: run {run.name} is running; wait for its end, or end it with "
            f"`{command_line('stop', run.folder)}`"
        )
    _refuse(run, _other_spec(spec, load(str(run.folder / layout.SPEC))))
    return run


def _other_spec(spec: Spec, earlier: Spec) -> Iterator[str]:
    for section in SECTIONS:
        if getattr(spec, section) != getattr(earlier, section):
            yield f"another {section}"
    if spec.search.seed != earlier.search.seed:
        # Its win rates are against answers that the reference sampled with that seed.
        yield f"search.seed {earlier.search.seed}, not {spec.search.seed}"
    if spec.rungs_pairs != earlier.rungs_pairs:
        yield f"rungs at {earlier.rungs_pairs} pairs, not {spec.rungs_pairs}"
    if (spec.lora is None) != (earlier.lora is None):
        yield "LoRA in one of them alone"


def _other_content(record: Record, run: Run) -> Iterator[str]:
    """Yield what differs although the two specs name the same: files and repositories change."""
    now, then = record.info["prepared"], run.info.get("prepared") or {}
    if now["data"] != then.get("data"):
        yield f"another data ({then.get('data')}, not {now['data']})"
    ours, theirs = (
        {stage: _inputs(folder, prepared, stage) for stage in ("reference", "answers")}
        for folder, prepared in ((record.folder, now), (run.folder, then))
    )
    # The rows that are scored differ with the space. The model that scores them must not.
    if now["reference"] != then.get("reference") and (
        not theirs["reference"]
        or ours["reference"] | {"rows": 0} != theirs["reference"] | {"rows": 0}
    ):
        yield f"another reference model ({then.get('reference')}, not {now['reference']})"
    if ours["answers"].get("judge") != theirs["answers"].get("judge"):
        yield "another judge"
    if ours["answers"].get("format") != theirs["answers"].get("format"):
        yield "answers of the reference from another version of preftune"


def _inputs(folder: Path, prepared: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """Return what the key of a run's prepared stage was computed from; empty if that is gone."""
    meta = folder.parent / layout.PREPARED / str(prepared.get(stage)) / META
    if not meta.is_file():
        return {}
    return dict(json.loads(meta.read_text(encoding="utf-8"))["inputs"])


def _refuse(run: Run, differences: Iterator[str]) -> None:
    named = list(differences)
    if named:
        raise UserError(
            f"search.warm_start: run {run.name} has {'; '.join(named)}. Its values cannot be "
            "compared with this search's: make them equal, or leave warm_start out"
        )


def warm_study(spec: Spec, record: Record, run: Run) -> Study:
    """Begin the study with an earlier run's trials; copy their records.

    Trials that failed teach nothing; one whose configuration does not lie in this space, or whose
    fixed fields are others, cannot be used by this sampler. Both are left out and counted.

    Raises:
        UserError: data, reference or judge are others than the earlier run's, whatever the specs
            say; or no trial can be taken in.
    """
    _refuse(run, _other_content(record, run))
    earlier = load(str(run.folder / layout.SPEC))
    study, _ = open_study(run.folder / layout.JOURNAL)
    trials = study.get_trials(deepcopy=False) if study else []
    # A journal without the attribute is of a version that stored distances alone.
    attributes = study.user_attrs if study else {}
    absolute = attributes.get(ABSOLUTE, range(len(trials)))
    numbers: dict[int, int] = {}
    taken: list[FrozenTrial] = []
    for trial in trials:
        if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
            continue
        stored = {name: decode(name, value) for name, value in trial.params.items()}
        params = _in_space(spec, earlier.configuration(stored).fields)
        if params is not None:
            numbers[trial.number] = len(taken)
            taken.append(_as_ours(spec, trial, params, run, trial.number in absolute))
    if not taken:
        raise UserError(
            f"search.warm_start: none of the {len(trials)} trials of run {run.name} lies in this "
            "search's space with its fixed fields: widen the space, or leave warm_start out"
        )
    for old, new in numbers.items():
        target = record.trial_folder(new)
        if (run.trial_folder(old)).is_dir():
            shutil.copytree(run.trial_folder(old), target, dirs_exist_ok=True)
    decisions = read_decisions(run.folder)
    record.take_over([replace(d, trial=numbers[d.trial]) for d in decisions if d.trial in numbers])
    _take_checkpoints(record, run, taken)
    ours = Study(spec, record.folder, taken)
    record.update(
        warm_start={
            "run": str(run.folder),
            "taken": len(taken),
            "left_out": len(trials) - len(taken),
        }
    )
    return ours


def _in_space(spec: Spec, whole: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the searched fields of a configuration, or None where this space does not hold it."""
    params = {name: whole[name] for name in spec.space if name in whole}
    if len(params) < len(spec.space) or spec.configuration(params).fields != whole:
        return None
    inside = all(domain.holds(params[name]) for name, domain in spec.space.items())
    return params if inside else None


def _take_checkpoints(record: Record, run: Run, taken: Sequence[FrozenTrial]) -> None:
    """Give the trials that could be finalists their weights among this run's own checkpoints.

    The earlier run may be removed, or search on and drop them.
    """
    ours = Checkpoints(record)
    for number, trial in enumerate(taken):
        checkpoint = trial.user_attrs.pop("checkpoint", None)
        if checkpoint is None or trial.state != TrialState.COMPLETE:
            continue
        with opened(place_of(run.folder, checkpoint)) as folder:
            if damage(folder) is None:
                path = f"warm_start/{TRIAL}{number:04d}/checkpoint_000000"
                trial.user_attrs["checkpoint"] = ours.add(folder, path)


def _as_ours(
    spec: Spec, trial: FrozenTrial, params: dict[str, Any], run: Run, absolute: bool
) -> FrozenTrial:
    violations = relative(trial.constraints, spec.objective) if absolute else trial.constraints
    attributes = {**trial.user_attrs, TAKEN_FROM: f"{run.name}, trial {trial.number}"}
    ours = create_trial(
        state=trial.state,
        value=trial.value,
        params={name: encode(name, value) for name, value in params.items()},
        distributions=distributions(spec.space),
        user_attrs=attributes,
        intermediate_values=trial.intermediate_values,
        constraints=violations,
    )
    ours.datetime_start, ours.datetime_complete = trial.datetime_start, trial.datetime_complete
    return ours
