"""Each private name of Ray that is used exists in the installed Ray, and stands in one module."""

import inspect
import re
from types import SimpleNamespace

import ray
from ray._private import utils, worker
from ray.experimental import internal_kv
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.experiment.trial import _TemporaryTrialState
from searching import ROOT

from tune import ray_internals

PRIVATE = re.compile(
    r"ray\._|_internal_kv|temporary_state|metric_n_steps|metric_analysis|latest_checkpoint_result"
)


def test_no_other_module_uses_a_private_name() -> None:
    modules = [path for name in ("tune", "trainables") for path in (ROOT / name).rglob("*.py")]
    assert [path.name for path in modules if PRIVATE.search(path.read_text())] == [
        "ray_internals.py"
    ]


def test_functions_exist() -> None:
    assert list(inspect.signature(utils.set_sigterm_handler).parameters) == ["sigterm_handler"]
    assert isinstance(worker._worker_logs_enabled, bool)
    assert list(inspect.signature(internal_kv._internal_kv_put).parameters)[:2] == ["key", "value"]
    for read in ("exists", "get", "del"):
        function = getattr(internal_kv, f"_internal_kv_{read}")
        assert list(inspect.signature(function).parameters)[0] == "key"


def test_trial_has_what_is_dropped_from_it() -> None:
    """On a real trial, as Ray Tune makes it before it runs."""
    trial = Trial("unused", stub=True)
    assert isinstance(trial.temporary_state, _TemporaryTrialState)
    assert ray_internals.actor_of(trial) is None  # it has not been started
    trial.update_last_result({"win_rate": 0.5, "training_iteration": 1})
    assert "win_rate" in trial.metric_n_steps and "win_rate" in trial.metric_analysis
    ray_internals.forget_averages(trial)
    assert not trial.metric_n_steps and not trial.metric_analysis
    assert trial.latest_checkpoint_result is None
    ray_internals.forget_report(trial)
    kept = SimpleNamespace(metrics={"report": "arrays", "win_rate": 0.5})
    ray_internals.forget_report(SimpleNamespace(latest_checkpoint_result=kept))
    assert kept.metrics == {"win_rate": 0.5}
    for name in ("config", "max_failures", "num_failures", "status"):
        assert hasattr(trial, name), name
    assert isinstance(Trial.path, property) and isinstance(Trial.error_file, property)
    assert callable(TuneController.get_live_trials)


def test_sigterm_handler_is_ours_within_the_block_alone() -> None:
    before = ray._private.utils.set_sigterm_handler
    with ray_internals.own_sigterm_handler():
        assert ray._private.utils.set_sigterm_handler is not before
    assert ray._private.utils.set_sigterm_handler is before


def test_folders_of_a_job_are_where_ray_adds_its_own() -> None:
    config = ray_internals.only_importing_from(["/here"])
    assert config._py_driver_sys_path == ["/here"]
    assert "job_config._py_driver_sys_path.extend(code_paths)" in inspect.getsource(worker)
    assert list(config._get_proto_job_config().py_driver_sys_path) == ["/here"]
