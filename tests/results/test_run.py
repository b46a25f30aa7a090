"""Opening run folders in every state, and what the tables, the card and dpo.yaml say of them."""

import hashlib
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console, RenderableType
from run_folder import crash, write_run
from searching import HANG

from results.formatting import compact
from results.publish.card import model_card
from results.publish.dpo_yaml import BATCH_DEFAULTS, LORA, dpo_yaml
from results.publish.public_view import candidate
from results.publish.target import Target
from results.run.commands import command_line
from results.run.listing import list_runs, open_run
from results.run.run import Run
from results.tables import (
    data_report_table,
    leaderboard_table,
    runs_table,
    trial_detail,
    verdict_panel,
)
from results.views import ranked
from search_spaces.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("runs")
    write_run(storage, "won")
    write_run(storage, "lost", outcome="none")
    write_run(storage, "live", state="searching")
    return storage


def text(renderable: RenderableType, width: int = 100) -> str:
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def fingerprint(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_trials_are_read_as_they_were_told(storage: Path) -> None:
    trials = open_run("won", storage).trials()
    states = [trial.state for trial in trials]
    assert states == ["complete", "stopped", "infeasible", "complete", "stopped", "failed"]
    first, broken = trials[0], trials[2]
    assert first.params["loss_type"] == ["sigmoid", "sft"]
    assert (first.value, first.pairs) == (0.81, 1600)
    assert first.rungs == {178: 0.62, 533: 0.71, 1600: 0.81}
    assert broken.constraints == {"kl": 2.15}  # 63 against a limit of 20
    assert broken.cause == "kl 63 > 20"


def test_leaderboard_order(storage: Path) -> None:
    # Complete .81 and .74; stopped at 533 pairs (.58) before 178 (.51); then the lost ones.
    numbers = [trial.number for trial in ranked(open_run("won", storage))]
    assert numbers == [0, 3, 4, 1, 2, 5]


def test_batch_that_rounds_a_rung_up_moves_no_trial(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the rung of 178 pairs, batches of 4 have seen 180 and batches of 8 have seen 184."""
    run = open_run("won", storage)
    better = replace(run.trials()[1], pairs=180)
    worse = replace(better, number=6, pairs=184, value=0.4)
    monkeypatch.setattr(Run, "trials", lambda self: [worse, better])
    assert [trial.number for trial in ranked(run)] == [1, 6]


def test_reading_alters_nothing(storage: Path) -> None:
    before = fingerprint(storage)
    run = open_run("won", storage)
    run.missing(), run.samples(0), run.decisions(), run.verdict(), list_runs(storage)
    model_card(run), dpo_yaml(run)
    assert fingerprint(storage) == before


def test_runs_are_found_by_name_path_and_latest(storage: Path) -> None:
    edit(storage / "lost" / "run.json", created="2027-01-01T00:00:00+00:00")
    assert open_run("won", storage).folder == open_run(storage / "won").folder
    assert open_run(None, storage).name == open_run("latest", storage).name == "lost"
    with pytest.raises(UserError, match="no run 'wno' .* there are: lost, "):
        open_run("wno", storage)


def test_no_run_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run in .*`preftune run quickstart`"):
        open_run(None, tmp_path)
    with pytest.raises(UserError, match="is not a run of preftune"):
        open_run(tmp_path)


def test_listing_imports_neither_optuna_nor_torch(storage: Path) -> None:
    code = (
        "import sys; from results.run.listing import list_runs; print(len(list_runs(sys.argv[1])),"
        "sorted({'optuna', 'torch', 'pandas'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(storage)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG)
    assert done.stdout.strip() == "3 []", done.stderr


def test_a_crashed_run_opens_and_says_what_is_missing(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "crashed", state="searching")
    assert open_run(folder).state == "searching"  # this process holds its lock
    crash(folder)
    with (folder / "study.journal").open("a") as journal:
        journal.write('{"op_code": 6, "trial_')  # killed in the middle of a write
    with (folder / "decisions.jsonl").open("a") as decisions:
        decisions.write('{"time": "20')
    run = open_run(folder)
    assert run.state == "crashed" and list_runs(tmp_path)[0].state == "crashed"
    assert [trial.state for trial in run.trials()].count("running") == 1
    resume = command_line("resume", folder)
    assert run.missing() == [
        f"the process ended while searching; `{resume}` continues from there",
        "trials without an end: 4",
        "verdict.json is missing: nothing was verified on the test split",
    ]
    assert "unfinished" in text(leaderboard_table(run))
    assert "crashed before its verdict" in text(verdict_panel(run))


def test_damage_in_the_middle_is_named_and_ends_the_reading(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "damaged")
    journal = folder / "study.journal"
    lines = journal.read_text().splitlines()
    told = [i for i, line in enumerate(lines) if '"op_code":6' in line][-2]  # the end of trial 2
    lines[told] = lines[told][:20]
    journal.write_text("\n".join(lines) + "\n")
    (folder / "trials" / "0" / "measures.jsonl").write_text("not json\n")
    (folder / "trials" / "1" / "measures.jsonl").unlink()
    (folder / "trials" / "1" / "samples.jsonl").write_text('{"row": 1, "score": 0.5}\n')
    run = open_run(folder)
    states = [trial.state for trial in run.trials()]
    assert states == ["complete", "stopped", "running", "complete", "stopped", "running"]
    assert run.missing() == [
        f"study.journal is damaged at line {told + 1}: trials after it are not shown",
        "trial 1 has no measures.jsonl: only its objective is known",
        "trials/0/measures.jsonl cannot be read at line 1",
        "trials/1/samples.jsonl cannot be read at line 1",  # without an answer
        "trials without an end: 2, 5",
    ]


@pytest.mark.parametrize(
    ("changed", "shown"),
    [
        ({"training": {"loss_type": 7}}, "`training.loss_type` is 7, and a list belongs there"),
        ({"training": {"loss_type": ["sft", 3]}}, "`training.loss_type.1` is 3, and text belongs"),
        ({"search": {"trials": 7.5}}, "`search.trials` is 7.5, and a whole number belongs there"),
        ({"objective": {"constraints": {"kl": 2}}}, "`objective.constraints.kl` is 2, and a mapp"),
    ],
)
def test_a_value_of_another_kind_is_named_by_its_key(
    tmp_path: Path, changed: dict[str, Any], shown: str
) -> None:
    folder = write_run(tmp_path, "odd")
    spec = yaml.safe_load((folder / "spec.yaml").read_text())
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec | changed))
    with pytest.raises(UserError, match=f"spec.yaml cannot be used: its {re.escape(shown)}"):
        _ = open_run(folder).spec


def test_damaged_and_newer_files_are_one_sentence(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "odd")
    (folder / "verdict.json").write_text("{")
    with pytest.raises(UserError, match=r"verdict\.json cannot be read"):
        open_run(folder).verdict()
    assert list_runs(tmp_path)[0].state == "unreadable"
    (folder / "spec.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"spec\.yaml cannot be read"):
        _ = open_run(folder).spec
    edit(folder / "run.json", format=2)
    with pytest.raises(UserError, match="written in format 2, .* update preftune"):
        open_run(folder)
    (folder / "run.json").write_text("[]")
    with pytest.raises(UserError, match="must hold a JSON object"):
        open_run(folder)


def test_a_folder_with_only_a_run_json_still_opens(tmp_path: Path) -> None:
    (tmp_path / "early").mkdir()
    (tmp_path / "early" / "run.json").write_text('{"format": 1, "state": "failed", "error": "no"}')
    run = open_run("early", tmp_path)
    assert run.trials() == [] and len(run.missing()) == 4
    assert "The run failed: no" in text(verdict_panel(run))
    assert "trial" in text(leaderboard_table(run))


def test_leaderboard_of_a_narrow_terminal_has_configurations_below(storage: Path) -> None:
    """Folded into columns of a letter or two they could not be read."""
    shown = text(leaderboard_table(open_run("won", storage)), width=80)
    rows = [line.split() for line in shown.splitlines()]
    winner = ["0*", "complete", "1600", "0.810", "0.77", "1.6", "0.81", "1.00"]
    assert winner in rows
    assert ["0*", "learning_rate=2.1e-4", "beta=0.3", "per_device_train_batch_size=8"] in rows
    assert ["loss_type=sigmoid", "+", "sft"] in rows
    assert shown.count("learning_rate=") == 6


def test_leaderboard_fits_100_columns_and_loses_nothing(storage: Path) -> None:
    shown = text(leaderboard_table(open_run("won", storage)))
    assert max(len(line) for line in shown.splitlines()) <= 100
    assert "…" not in shown and "\x1b" not in shown
    rows = [line.split() for line in shown.splitlines()]
    assert ["-", "reference", "0", "0.500", "0.46", "0.0", "0.50", "1.00"] in rows
    winner = ["0*", "complete", "1600", "2.1e-4", "0.3", "8", "sigmoid"]
    assert any(row[:7] == winner for row in rows)
    assert "\nKL blow-up: trial 2\n" in shown and "\npairs mislead: trial 2\n" in shown
    assert "`preftune show` with `--trial N` explains the warnings" in shown


def test_verdict_names_judge_scores_with_their_interval(storage: Path) -> None:
    shown = " ".join(text(verdict_panel(open_run("won", storage))).replace("│", " ").split())
    assert "mean judge score is 0.78 for trial 0 and 0.46 for the reference" in shown
    assert "+0.32 [+0.28, +0.37]" in shown and "+0.30 [+0.26, +0.34]" in shown
    assert "No configuration beats the reference on the test split." in text(
        verdict_panel(open_run("lost", storage))
    )


def test_trial_detail_shows_answers_as_text(storage: Path) -> None:
    shown = text(trial_detail(open_run("won", storage), 0))
    assert "The [bold]capital[/bold] is <b>Paris</b>." in shown and "\x1b" not in shown
    assert "1600 pairs: complete at 0.810, the budget is used" in shown
    with pytest.raises(UserError, match="no trial 9; its trials are 0 to 5"):
        trial_detail(open_run("won", storage), 9)


def test_other_tables(storage: Path) -> None:
    shown = text(data_report_table(open_run("won", storage)))
    assert (
        "path quickstart, split train, rows 1,600, test_fraction 0.2, seed 42, max_length 64"
        in shown
    )
    rows = [" ".join(line.split()) for line in shown.splitlines()]
    assert (
        "dropped: an answer has no visible character (row 307) 56 13 11" in rows
        and "kept 1,024 187 309" in rows
    )
    assert "with an answer cut at max_length 12.3 % 15.5 % 14.6 %" in rows
    assert "answer tokens, median / 95th percentile 8 / 64 8 / 64 8 / 64" in rows
    assert not [row for row in rows if "the chat template refuses" in row]  # none was
    shown = text(runs_table(list_runs(storage)))
    assert all(name in shown for name in ("won", "lost", "live", "searching"))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (2.1e-4, "2.1e-4"),
        (1e-6, "1e-6"),
        (0.3, "0.3"),
        (1.0, "1"),
        (8, "8"),
        (True, "True"),
        (["sigmoid", "sft"], "sigmoid + sft"),
        (math.nan, "nan"),
        ("adamw_torch", "adamw_torch"),
    ],
)
def test_compact(value: object, shown: str) -> None:
    assert compact(value) == shown


def test_warnings_are_in_full_where_there_is_room(storage: Path) -> None:
    run = open_run("won", storage)
    shown = " ".join(text(trial_detail(run, 2)).split())
    assert "- missing EOS: 30 % of the answers end with EOS, of the reference's 100 %" in shown
    assert "Warnings" not in text(trial_detail(run, 0))
    shown = " ".join(text(data_report_table(run)).split())
    assert "- truncated answers: In many pairs an answer is cut at max_length 64" in shown


def test_card_has_warnings_only_where_there_are_some(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "cut")
    card = model_card(open_run(folder))
    assert "- **truncated answers**: In many pairs" in card and card.count("\n- **") == 1
    assert "- **pairs mislead**: It ranks 99 %" in model_card(
        open_run(folder), candidate(open_run(folder), 2)
    )
    test = {"win_rate": 0.7, "ended": 0.2, "length_ratio": 1.0}
    full = {"test": test, "passing": True, "sentence": "It is better.", "pairs": 1950, "trial": 0}
    card = model_card(open_run(folder), candidate(open_run(folder), full=full))
    assert "- **missing EOS**: 20 %" in card and "measures of the test split" in card
    (folder / "data_report.json").unlink()
    assert "Warnings" not in model_card(open_run(folder))


def test_card_metadata_and_words(storage: Path) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard(model_card(open_run("won", storage), target=Target("me/tuned")))
    data = card.data.to_dict()
    assert data["library_name"] == "transformers" and "dpo" in data["tags"]
    assert "base_model" not in data  # the quickstart is no repository on the Hub
    (result,) = data["model-index"][0]["results"]
    assert result["dataset"]["split"] == "test"
    values = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert values["win_rate"] == 0.8 and values["judge_score"] == 0.78
    assert "Trial 0 beats the reference" in card.text and 'model="me/tuned"' in card.text
    assert "| win_rate | 0.500 | 0.800 |" in card.text
    assert "without a passing verdict" not in card.text


def test_card_and_config_name_hub_ids_but_no_local_path(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "named")
    spec = yaml.safe_load((folder / "spec.yaml").read_text())
    spec["dataset"]["path"] = str(tmp_path / "secret" / "pairs.jsonl")
    spec["lora"] = {"r": 16, "target_modules": ["c_attn"], "init_lora_weights": "pissa"}
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    edit(
        folder / "run.json",
        model={"path": "openai-community/gpt2", "revision": "607a30d"},
        revisions={"model": "607a30d"},
    )
    run = open_run(folder)
    card, config = model_card(run), dpo_yaml(run)
    assert "base_model: openai-community/gpt2" in card and "pairs.jsonl" in card
    assert str(tmp_path) not in card + config and "secret" not in card + config
    fields = yaml.safe_load(config)
    assert fields["model_revision"] == "607a30d"
    assert fields["use_peft"] is True
    # PEFT's defaults where the spec says nothing: TRL's are 32 and 0.05.
    assert (fields["lora_r"], fields["lora_alpha"], fields["lora_dropout"]) == (16, 8, 0.0)
    assert "# TRL's command has no field for: lora.init_lora_weights" in config


# TRL 1.16 sets a field of its own config by the name that transformers 5.23 deprecates.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
def test_trl_reads_the_config(storage: Path, tmp_path: Path) -> None:
    import peft
    from trl import DPOConfig
    from trl.scripts.dpo import make_parser

    path = tmp_path / "dpo.yaml"
    path.write_text(dpo_yaml(open_run("won", storage)))
    script, training, model, _ = make_parser().parse_args_and_config(["--config", str(path)])
    assert (script.dataset_name, model.model_name_or_path) == ("quickstart", "quickstart")
    assert (training.learning_rate, training.beta) == (2.1e-4, 0.3)
    assert training.loss_type == ["sigmoid", "sft"] and training.max_length == 64
    assert training.max_steps == 100  # 1600 pairs in batches of 8 x 2
    fields = DPOConfig.__dataclass_fields__
    assert {name: fields[name].default for name in BATCH_DEFAULTS} == BATCH_DEFAULTS
    lora = peft.LoraConfig.__dataclass_fields__
    assert {n: lora[n].default for n in LORA} == {n: default for n, (_, default) in LORA.items()}
