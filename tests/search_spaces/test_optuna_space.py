"""A space becomes Optuna's distributions, and its values come back as the spec wrote them."""

from pathlib import Path

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.choices import decode, encode
from search_spaces.domains import Domain
from search_spaces.optuna_space import distributions, grid

SPACE = {
    "learning_rate": Domain.model_validate({"loguniform": [1e-5, 1e-3]}),
    "weight_decay": Domain.model_validate({"uniform": [0, 1]}),
    "warmup_steps": Domain.model_validate({"int": [0, 10]}),
    "lora.r": Domain.model_validate({"logint": [4, 64]}),
    "loss_type": Domain.model_validate({"choice": [["sigmoid"], ["sigmoid", "sft"]]}),
    "optim": Domain.model_validate({"choice": ["adamw_torch", "rmsprop", None]}),
}


def test_each_domain_has_its_distribution() -> None:
    from optuna.distributions import CategoricalDistribution as Categorical
    from optuna.distributions import FloatDistribution as Float
    from optuna.distributions import IntDistribution as Int

    assert distributions(SPACE) == {
        "learning_rate": Float(1e-5, 1e-3, log=True),
        "weight_decay": Float(0, 1),
        "warmup_steps": Int(0, 10),
        "lora.r": Int(4, 64, log=True),
        "loss_type": Categorical(['["sigmoid"]', '["sigmoid", "sft"]']),
        "optim": Categorical(["adamw_torch", "rmsprop", None]),
    }


def test_a_study_asks_and_is_told_lists(tmp_path: Path) -> None:
    """Through a journal on disk, whose JSON would refuse or change a list."""
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.journal"))
    )
    study = optuna.create_study(storage=storage, sampler=optuna.samplers.RandomSampler(seed=0))
    first = {"loss_type": ["sigmoid", "sft"], "weight_decay": 0.5}
    study.enqueue_trial({name: encode(name, value) for name, value in first.items()})
    asked = []
    for _ in range(20):
        trial = study.ask(distributions(SPACE))
        asked.append({name: decode(name, value) for name, value in trial.params.items()})
        study.tell(trial, 0.0)
    assert first.items() <= asked[0].items()
    for params in asked:
        assert all(SPACE[name].holds(value) for name, value in params.items())
    assert {tuple(params["loss_type"]) for params in asked} == {("sigmoid",), ("sigmoid", "sft")}


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(PLAIN)
def test_decode_undoes_encode(value: object) -> None:
    encoded = encode("field", value)
    assert encoded is None or isinstance(encoded, bool | int | float | str)
    assert decode("field", encoded) == value


def test_text_that_looks_like_json_stays_text() -> None:
    assert decode("lora.target_modules", encode("lora.target_modules", "[qk]_proj")) == "[qk]_proj"
    assert decode("lora.target_modules", encode("lora.target_modules", '["q"]')) == '["q"]'
    with pytest.raises(ValueError, match=r"lora\.target_modules: the study holds"):
        decode("lora.target_modules", "[qk]_proj")
    with pytest.raises(TypeError, match="optim"):
        encode("optim", {1, 2})


def test_a_grid_is_the_product_in_order() -> None:
    space = {
        "beta": Domain.model_validate({"choice": [0.2, 0.1]}),
        "warmup_steps": Domain.model_validate({"int": [1, 2]}),
        "loss_type": Domain.model_validate({"choice": [["ipo"]]}),
    }
    assert grid(space) == [
        {"beta": 0.2, "warmup_steps": 1, "loss_type": ["ipo"]},
        {"beta": 0.2, "warmup_steps": 2, "loss_type": ["ipo"]},
        {"beta": 0.1, "warmup_steps": 1, "loss_type": ["ipo"]},
        {"beta": 0.1, "warmup_steps": 2, "loss_type": ["ipo"]},
    ]
    with pytest.raises(ValueError, match=r"learning_rate: .* has no grid"):
        grid(SPACE)


@pytest.mark.parametrize(
    ("domain", "inside", "outside"),
    [
        ({"int": [1, 4]}, [1, 4], [0, 5, 2.0, True, "2"]),
        ({"uniform": [0, 1]}, [0, 1.0], [1.5, float("nan"), False, None]),
        ({"choice": [0, "a", ["b"]]}, [0, 0.0, ["b"]], [False, "b", None]),
    ],
)
def test_holding_a_value_minds_its_kind(
    domain: dict[str, list[object]], inside: list[object], outside: list[object]
) -> None:
    held = Domain.model_validate(domain)
    assert all(map(held.holds, inside))
    assert not any(map(held.holds, outside))
