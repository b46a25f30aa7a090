"""Every seed that is derived from `search.seed` is one, up to the largest that a spec may name."""

from pathlib import Path

import numpy as np
import pytest
from deciding import spec_of
from transformers import set_seed

from search_spaces.schema import SEEDS
from search_spaces.spec import Spec
from trainables.budget import in_order
from trainables.evaluation.draws import TokenDraws
from trainables.reference import REFERENCE_STREAM
from tune.study import Study
from tune.verdict import fresh_seeds


@pytest.fixture(params=[0, 7, SEEDS - 1_001, SEEDS - 1_000, SEEDS - 1])
def spec(request: pytest.FixtureRequest, tmp_path: Path) -> Spec:
    spec = spec_of(tmp_path)
    search = spec.search.model_copy(update={"seed": request.param})
    return spec.model_copy(update={"search": search})


def test_fresh_seeds_can_be_trained_with(spec: Spec) -> None:
    seeds = fresh_seeds(spec.search.seed, spec.verify.seeds)
    assert len({spec.search.seed, *seeds}) == 1 + spec.verify.seeds
    for seed in seeds:
        set_seed(seed)  # of random, NumPy and PyTorch, as TRL sets it
        assert len(in_order(10, 4, seed)) == 4


def test_sampling_and_search_take_the_seed(spec: Spec, tmp_path: Path) -> None:
    streams = [TokenDraws(spec.search.seed + more, [0]).streams for more in (0, REFERENCE_STREAM)]
    ours, theirs = (float(stream[0].random()) for stream in streams)
    assert np.isfinite([ours, theirs]).all() and ours != theirs
    assert Study(spec, tmp_path).ask()[0] == 0
