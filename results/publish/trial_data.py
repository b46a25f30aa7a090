"""A search's trials as tables for others: what was tried and measured, nothing of where."""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from results.formatting import ending
from results.publish.public_view import last_part
from results.run.run import Run
from search_spaces.locations import is_local

# Of a trial's user attributes: not its node, its checkpoint's place, or what an exception said.
MESSAGES = ("prompt", "chosen", "rejected")  # columns of votes
ATTRIBUTES = ("seconds", "restarts", "micro_batch")


def trial_rows(run: Run) -> list[dict[str, Any]]:
    """One row a trial: number, state, `params_...`, and the measures at the last rung reached."""
    winner = (run.verdict() or {}).get("winner")
    return [
        {
            "number": trial.number,
            "state": trial.state,
            "ended": ending(trial, run),
            "winner": trial.number == winner,
            "pairs": trial.pairs,
            "value": trial.value,
            # As Optuna's own table of trials names them.
            **{f"params_{name}": _param(value) for name, value in trial.params.items()},
            **{name: trial.attrs[name] for name in ATTRIBUTES if name in trial.attrs},
            **{
                name: value
                for name, value in _measures(trial.measures).items()
                if name not in ("pairs", *ATTRIBUTES)
            },
        }
        for trial in run.trials()
    ]


def curve_rows(run: Run) -> list[dict[str, Any]]:
    """One row a trial and rung."""
    return [
        {"number": trial.number, **_measures(record)}
        for trial in run.trials()
        for record in run.measures(trial.number)
    ]


def parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Write rows as parquet, the same bytes for the same rows; a missing value is null."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: _column(name, [row.get(name) for row in rows]) for name in names}
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, compression="zstd")
    return out.getvalue()


def _measures(record: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a record; a word that a trial put there could be a place on a machine."""
    return {name: value for name, value in record.items() if isinstance(value, int | float | None)}


def _param(value: Any) -> Any:
    """A searched value as it was trained with; of a path on this machine the last part."""
    return last_part(value) if isinstance(value, str) and is_local(value) else value


def _column(name: str, values: list[Any]) -> Any:
    """Values of one type as they are; else as JSON, which holds all of them."""
    import pyarrow as pa

    known = [value for value in values if value is not None]
    types = {type(value) for value in known}
    if types <= {int, float}:
        whole = types == {int} and all(-(2**63) <= value < 2**63 for value in known)
        if not whole:
            values = [None if value is None else float(value) for value in values]
        return pa.array(values, pa.int64() if whole else pa.float64())
    messages = name in MESSAGES and types == {list}
    if types in ({bool}, {str}) or messages:
        return pa.array(values)
    return pa.array([None if v is None else json.dumps(v) for v in values], pa.string())
