"""The licence of a tuned model: its base's, as the base's card on the Hub says.

The search notes it down when it finds the base; what it could not see is looked up at the push.
"""

import re
from dataclasses import dataclass, replace
from typing import Any, Literal

from results.publish.public_view import hub_id
from results.run.run import Run
from search_spaces.locations import is_hub_id

KEYS = ("license", "license_name", "license_link")  # the words of a card's metadata
IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.+_-]{0,60}")
LINK = re.compile(r"https?://[^\s<>()\"'`]{1,300}")
PATIENCE = 10  # seconds for the Hub to answer


@dataclass(frozen=True)
class Licence:
    """What is known.

    Attributes:
        model: the base model's `license` and, where that is `other`, `license_name` and
            `license_link`; empty if it is unknown.
        dataset: the data set's `license`.
    """

    model: dict[str, str]
    dataset: str | None


def recorded(run: Run) -> Licence:
    """What the run folder says."""
    model, dataset = run.info.get("model") or {}, run.info.get("dataset") or {}
    path = model.get("path") or run.spec.get("model")
    # The quickstart's base and pairs come with preftune.
    base = {"license": "apache-2.0"} if path == "quickstart" else _clean(model, path)
    pairs = (run.spec.get("dataset") or {}).get("path")
    own = "apache-2.0" if pairs == "quickstart" else _clean(dataset, None).get("license")
    return Licence(base, own)


def completed(licence: Licence, run: Run, token: str | None, endpoint: str | None) -> Licence:
    """Look up on the Hub what the run folder does not say; what cannot be had stays unknown."""
    model = run.info.get("model") or {}
    path, pairs = hub_id(run, "model"), hub_id(run, "dataset")
    if not licence.model and path:
        metadata = of_repository("model", path, model.get("revision"), token, endpoint)
        licence = replace(licence, model=metadata)
    if licence.dataset is None and pairs:
        metadata = of_repository("dataset", pairs, None, token, endpoint)
        licence = replace(licence, dataset=metadata.get("license"))
    return licence


def of_repository(
    kind: Literal["model", "dataset"],
    path: str,
    revision: str | None,
    token: str | None = None,
    endpoint: str | None = None,
) -> dict[str, str]:
    """Read the licence in the card of a repository; empty where there is none to be had."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    api = HfApi(endpoint=endpoint, token=token)
    try:
        info: Any = api.repo_info(path, repo_type=kind, revision=revision, timeout=PATIENCE)
    except (HTTPError, OSError, ValueError):
        return {}
    data = info.card_data
    return _clean({key: data.get(key) for key in KEYS} if data else {}, path)


def _clean(metadata: dict[str, Any], path: object) -> dict[str, str]:
    """Keep what has the form of a licence: a stranger wrote it."""
    name, title, link = (metadata.get(key) for key in KEYS)
    name = name[0] if isinstance(name, list) and len(name) == 1 else name
    if not isinstance(name, str) or not IDENTIFIER.fullmatch(name):
        return {}
    kept = {"license": name}
    if name == "other":
        if isinstance(title, str) and title.strip():
            kept["license_name"] = " ".join(title.split())[:100]
        if isinstance(link, str) and LINK.fullmatch(link):
            kept["license_link"] = link
        elif isinstance(link, str) and re.fullmatch(r"[\w.-]+", link) and is_hub_id(str(path)):
            # A file beside the base, which is not beside this model.
            kept["license_link"] = f"https://huggingface.co/{path}/blob/main/{link}"
    return kept
