"""The model card as the Hub takes it and as people read it, with hostile names in it."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub import Hub
from huggingface_hub import HfApi, ModelCard, metadata_load
from publishing import TOKEN, draw, pushed
from run_folder import write_run

from results.publish.card import model_card, published_texts
from results.publish.licence import Licence, completed, recorded
from results.publish.markdown import cell, code, literal
from results.publish.target import Target
from results.run.listing import open_run
from results.run.run import Run
from search_spaces.spec import load

pytestmark = [
    # huggingface_hub's own LFS upload passes its HTTP client a parameter by its older name.
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
    pytest.mark.usefixtures("online"),
]
HOSTILE = (
    "a`b``c</details><script>alert(1)</script>[x](http://evil) |\n---\nlicense: mit\n# $x$ _y_"
)


def edit(folder: Path, spec: dict[str, Any] | None = None, **info: Any) -> Run:
    """Change what a run folder says of its search and of itself."""
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **(spec or {})}))
    path = folder / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **info}))
    draw(folder)
    return open_run(folder)


@pytest.fixture
def me(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub.add_token(TOKEN, "me", "write", "lab")
    # `ModelCard.validate` takes no address; this process's client has read its own at import.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
    pages = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", pages)
    return hub


def downloaded(hub: Hub) -> ModelCard:
    api = HfApi(endpoint=hub.endpoint)
    return ModelCard.load(api.hf_hub_download("me/winner", "README.md", local_dir=hub.root / "got"))


@pytest.fixture
def named(tmp_path: Path) -> Run:
    """A run of Hub repositories, pinned to commits."""
    folder = write_run(tmp_path / "runs", "named")
    report = json.loads((folder / "data_report.json").read_text())
    report["source"] = {"path": "lab/pairs", "revision": "c" * 40}
    (folder / "data_report.json").write_text(json.dumps(report))
    spec = {"model": "lab/base", "dataset": {"path": "lab/pairs", "split": "train"}}
    commits = {"model": "b" * 40, "dataset": "c" * 40, "judge": None}
    return edit(folder, spec, revisions=commits, model={"path": "lab/base", "revision": "b" * 40})


def test_local_base_and_data_spelt_like_ids_stay_local(me: Hub, named: Run) -> None:
    """Somebody else's repository of that name is neither cited nor asked for its licence."""
    me.create("lab/base").commit({"README.md": b"---\nlicense: mit\n---\n"})
    local = edit(named.folder, revisions={"model": None, "dataset": None, "judge": None})
    pushed(me, edit(local.folder, {"judge": "lab/taste"}))
    card = downloaded(me)
    assert card.data.base_model is None and card.data.datasets is None
    assert "license" not in card.data.to_dict()
    assert "lab/" not in card.text
    assert all(name in card.text for name in ("`base`", "`pairs`", "`taste`"))
    spec = yaml.safe_load(me.repository("me/winner").read("spec.yaml"))
    assert (spec["model"], spec["dataset"]["path"], spec["judge"]) == ("base", "pairs", "taste")


def test_the_hub_takes_the_card_and_gives_it_back(me: Hub, named: Run, tmp_path: Path) -> None:
    base = me.create("lab/base")
    base.commit({"README.md": b"---\nlicense: mit\n---\n"})
    me.create("lab/pairs", "datasets").commit({"README.md": b"---\nlicense: cc-by-4.0\n---\n"})
    commit = base.resolve("main")
    run = edit(named.folder, model={"path": "lab/base", "revision": commit})
    pushed(me, run)
    card = downloaded(me)
    card.validate()
    data = card.data
    assert data.base_model == "lab/base" and data.datasets == ["lab/pairs"]
    assert data["base_model_relation"] == "finetune" and data.license == "mit"
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    assert data.model_name == "winner" and data.eval_results is not None
    values = {one.metric_type: one.metric_value for one in data.eval_results}
    assert values["win_rate"] == 0.8 and values["kl"] == 1.7
    assert {one.dataset_type for one in data.eval_results} == {"lab/pairs"}
    assert {one.dataset_split for one in data.eval_results} == {"test"}
    # Written again by the Hub's own classes it is the same card.
    again = ModelCard(str(card))
    assert again.data.to_dict() == data.to_dict() and again.text == card.text
    (tmp_path / "README.md").write_text(str(card))
    assert metadata_load(tmp_path / "README.md") == data.to_dict()
    assert "The base model's licence is `mit`" in card.text
    assert "The data set's is `cc-by-4.0`" in card.text
    assert me.repository("me/winner").card()["base_model"] == "lab/base"


def test_licences(me: Hub, named: Run) -> None:
    """Noted down in the run, else looked up, else left out; `other` keeps name and link."""
    recorded_one = edit(
        named.folder, model={"path": "lab/base", "license": "mit"}, dataset={"license": "odc-by"}
    )
    assert recorded(recorded_one) == Licence({"license": "mit"}, "odc-by")
    unknown = edit(named.folder, model={"path": "lab/base"}, dataset={})
    assert completed(recorded(unknown), unknown, TOKEN, me.endpoint) == Licence({}, None)
    card = model_card(unknown)
    assert "license" not in ModelCard(card).data.to_dict()
    assert "Licence: see the base model." in card
    base = me.create("lab/base")
    other = b"---\nlicense: other\nlicense_name: llama-x\nlicense_link: LICENSE\n---\n"
    base.commit({"README.md": other})
    found = completed(recorded(unknown), unknown, TOKEN, me.endpoint)
    assert found.model == {
        "license": "other",
        "license_name": "llama-x",
        "license_link": "https://huggingface.co/lab/base/blob/main/LICENSE",
    }
    card = model_card(unknown, licence=found)
    assert ModelCard(card).data.license_name == "llama-x"
    assert "[llama-x](<https://huggingface.co/lab/base/blob/main/LICENSE>)" in card
    base.commit({"README.md": b"---\nlicense_link: 'javascript:x'\nlicense: other\n---\n"})
    found = completed(recorded(unknown), unknown, TOKEN, me.endpoint)
    assert found.model == {"license": "other"}


def test_hostile_names_are_text(me: Hub, named: Run) -> None:
    spec = yaml.safe_load((named.folder / "spec.yaml").read_text())
    space = {**spec["space"], HOSTILE: {"choice": [HOSTILE, "b"]}}
    verdict = json.loads((named.folder / "verdict.json").read_text())
    verdict["finalists"][1] |= {"beats_reference": False, "broken": [HOSTILE]}
    (named.folder / "verdict.json").write_text(json.dumps(verdict))
    run = edit(
        named.folder,
        {
            "model": f"/home/eve/{HOSTILE.replace('/', '')}",
            "dataset": {"path": f"/home/eve/{HOSTILE.replace('/', '')}", "name": HOSTILE},
            "judge": f"/home/eve/{HOSTILE.replace('/', '')}.py",
            "space": space,
            "training": {HOSTILE: HOSTILE},
        },
        model={"path": f"/home/eve/{HOSTILE.replace('/', '')}"},
        versions={"torch": HOSTILE},
        commit=HOSTILE,
    )
    pushed(me, run)
    card = downloaded(me)
    card.validate()
    data = card.data.to_dict()
    assert "license" not in data and "base_model" not in data and "datasets" not in data
    _only_text(card.text)
    spec = yaml.safe_load(published_texts(run)["spec.yaml"])
    assert spec["judge"].endswith(".py") and spec["model"].startswith("a`b``c<details>")


def _only_text(markdown: str) -> None:
    """Render as GitHub and the Hub do: no markup of a name may come out as markup."""
    from markdown_it import MarkdownIt

    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(markdown)
    flat = [t for token in tokens for t in (token, *(token.children or []))]
    assert not [t for t in flat if t.type.startswith("html")]
    links = [t.attrs.get("href") for t in flat if t.type == "link_open"]
    assert all(str(link).startswith("https://huggingface.co/") for link in links)
    headings = [flat[i + 1].content for i, t in enumerate(flat) if t.type == "heading_open"]
    assert headings == [
        "me/winner",
        "Use it",
        "Figures",
        "Warnings",
        "What was not measured",
        "The search",
        "Hyperparameters",
        "How to repeat it",
        "Licence",
    ]
    assert not [t for t in flat if t.type in ("em_open", "hr", "blockquote_open")]
    rows: list[int] = []
    for token in flat:
        if token.type == "tr_open":
            rows.append(0)
        rows[-1:] = [rows[-1] + 1] if rows and token.type in ("td_open", "th_open") else rows[-1:]
    assert set(rows) <= {2, 3, 7, 13}, "a name has broken a row of a table"


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        HOSTILE,
        "`",
        "``x`",
        "",
        "- item",
        "1. item",
        "# head",
        "=x",
        "www.evil.com",
        "a@b.c",
    ],
)
def test_any_text_is_one_text(text: str) -> None:
    from markdown_it import MarkdownIt

    shown = " ".join(text.split())
    for written in (literal(text), f"before {literal(text)} after"):
        (paragraph,) = MarkdownIt("commonmark").parse(written)[1:-1] or [None]
        if paragraph is not None:
            said = "".join(t.content for t in paragraph.children or [])
            assert said.removeprefix("before ").removesuffix(" after").strip() == shown
    (inline,) = MarkdownIt("commonmark").parse(f"x{code(text)}")[1:-1]
    (_, span) = inline.children or []
    assert span.type == "code_inline" and span.content.strip() == shown.strip()
    assert cell(text).count("|") == cell(text).count("\\|")


def test_the_card_says_how_to_repeat_and_what_was_searched(named: Run) -> None:
    run = edit(
        named.folder,
        {
            "storage": "/home/eve/runs",
            "checkpoints": "s3://key:secret@bucket",
            "trackers": ["wandb"],
        },
        command="preftune run /home/eve/search.yaml",
        commit="0123abc",
        versions={"torch": "2.13.0"},
    )
    texts = published_texts(run, target=Target("me/winner"), figure=True)
    card = texts["README.md"]
    assert "hf download me/winner spec.yaml --local-dir .\npreftune run spec.yaml" in card
    assert "| `learning_rate` | `loguniform 1e-5 to 3e-3` |" in card
    assert "up to 1600 pairs, with rungs at 178, 533, 1600 pairs; sampler tpe" in card
    assert "within kl ≤ 20" in card and "![win_rate against kl of every trial](front.png)" in card
    assert "| trial 0 | 0.800 | +0.30 \\[+0.26, +0.34\\] |" in card
    assert "| `torch` | `2.13.0` |" in card
    assert "preftune at commit `0123abc`" in card
    assert "/eve" not in card + texts["spec.yaml"] and "secret" not in "".join(texts.values())
    assert "front.png" not in model_card(run)


def test_the_published_search_is_one(named: Run, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(published_texts(named)["spec.yaml"])
    spec = load(str(path))
    assert (spec.model, spec.revision) == ("lab/base", "b" * 40)
    assert (spec.dataset.path, spec.dataset.revision) == ("lab/pairs", "c" * 40)


def test_the_figure_is_drawn_once_and_again_when_the_search_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    from results.report import page as report

    folder = write_run(tmp_path / "runs", "won")
    drawn: list[str] = []

    def write(run: Run, figures: dict[str, Any]) -> list[Path]:
        drawn.extend(figures)
        draw(folder)
        return [folder / "figures" / "front.png"]

    monkeypatch.setattr(report, "_write", write)
    run = open_run(folder)
    for _ in range(2):
        path = report.front_png(run)
    assert path == folder / "figures" / "front.png" and drawn == ["front"]
    os.utime(path, (1, 1))
    report.front_png(run)
    assert drawn == ["front", "front"]
