"""A run's search as a file for others: what to repeat, and nothing of the machine it ran on."""

import copy
from typing import Any

import yaml

from results.publish.public_view import Part, hub_id, last_part
from results.run.run import Run

# Where things are on a machine or a cluster. Each has a default.
OWN = ("storage", "checkpoints", "trackers")


def spec_yaml(run: Run) -> str | None:
    """Write the search for `preftune run spec.yaml`; None where the run folder has none.

    Base model and data set are pinned to the commits that were used. Of a local path the last
    part is left, and a comment says so.
    """
    if not run.spec:
        return None
    spec: dict[str, Any] = {k: v for k, v in copy.deepcopy(run.spec).items() if k not in OWN}
    comments = [f"The search of preftune run {last_part(run.name)}: preftune run spec.yaml"]
    model, source = run.info.get("model") or {}, (run.data_report() or {}).get("source") or {}
    dataset = spec.get("dataset") or {}
    if hub_id(run, "model") and model.get("revision"):
        spec["revision"] = model["revision"]
    if hub_id(run, "dataset") and source.get("revision"):
        dataset["revision"] = source["revision"]
    places: tuple[tuple[str, dict[str, Any], str, Part], ...] = (
        ("model", spec, "model", "model"),
        ("dataset.path", dataset, "path", "dataset"),
        ("judge", spec, "judge", "judge"),
    )
    for key, holder, name, part in places:
        path = holder.get(name)
        if path and path != "quickstart" and not hub_id(run, part):
            holder[name] = last_part(path)
            comments.append(f"{key} was a local path; put yours there.")
    if (spec.get("search") or {}).get("warm_start"):
        spec["search"]["warm_start"] = None
        comments.append("It began with the trials of an earlier run, which this file leaves out.")
    if (spec.get("resources") or {}).get("label"):
        spec["resources"]["label"] = None
    head = "".join(f"# {line}\n" for line in comments)
    return head + yaml.safe_dump(spec, sort_keys=False, allow_unicode=True)
