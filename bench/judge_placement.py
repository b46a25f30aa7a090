"""Measure where a reward model is best kept: in each trial's process, or in one Ray actor for all.

    python -m bench.judge_placement [--trials 4] [--rounds 2]

Real trials on the quickstart, judged by a reward model of five times their size with random
weights. Three ways are interleaved: each trial's process has its own, on the device only while it
scores (what preftune does); one actor has a CPU of its own; one actor has no CPU of its own and
takes turns with the trials. On a machine with a GPU, each trial gets a quarter of it.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import ray

from search_spaces.spec import Spec, load
from trainables.judges import Judge
from trainables.judges.load import load_judge
from trainables.prepared import Prepared
from trainables.quickstart.world import BASE
from tune.cluster.connection import connected
from tune.cluster.share import Share
from tune.cluster.shipping import Shipment
from tune.inputs import look_up
from tune.prepare import prepare
from tune.record import create

PARAMS = {"learning_rate": 1e-4, "beta": 1.0}


def write_reward_model(folder: Path) -> None:
    """Write a reward model with random weights and the quickstart's tokenizer."""
    from transformers import Qwen2Config, Qwen2ForSequenceClassification

    from trainables.models import load_tokenizer

    tokenizer = load_tokenizer(BASE)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=4,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen2ForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@ray.remote(max_restarts=0)
class SharedJudge:
    """One judge for all trials."""

    def __init__(self, path: str) -> None:
        import torch

        from trainables.devices import device_and_dtype

        torch.set_num_threads(1)
        self.judge = load_judge(path, device_and_dtype("auto")[0])

    def score(self, prompts: list[str], answers: list[str]) -> list[float]:
        """Score a batch of answers."""
        return self.judge(prompts, answers)


@ray.remote(max_retries=0)
def trial(spec: Spec, prepared: Prepared, share: Share, shared: Any) -> None:
    """Train one configuration, judged in this process or by the actor."""
    from trainables.dpo import train
    from tune.worker import ready

    own = spec if shared is None else spec.model_copy(update={"judge": None})
    judge: Judge | None = ready(own, share, Shipment(""), None)[0]
    if shared is not None:

        def judge(prompts: list[str], answers: list[str]) -> list[float]:
            return ray.get(shared.score.remote(prompts, answers))  # type: ignore[no-any-return]

    train(spec, PARAMS, prepared, lambda report: None, seed=spec.search.seed, judge=judge)


def seconds(spec: Spec, prepared: Prepared, trials: int, way: str, gpus: float) -> float:
    """Return how long `trials` trials take one way, from the first start to the last end."""
    started = time.monotonic()
    gpu = 0.25 if gpus else 0.0
    shared = None
    if way != "each trial its own":
        cpu = 1 if way == "one actor with a CPU" else 0
        shared = SharedJudge.options(num_cpus=cpu, num_gpus=gpu).remote(spec.judge)
        ray.get(shared.__ray_ready__.remote())
        started = time.monotonic()  # in a search it is loaded once, for many more trials
    task = trial.options(num_cpus=1, num_gpus=gpu)
    share = Share(cpu=1, gpu=gpu, concurrent=1)
    ray.get([task.remote(spec, prepared, share, shared) for _ in range(trials)])
    took = time.monotonic() - started
    if shared is not None:
        ray.kill(shared)
    return took


def main() -> None:
    """Print the median seconds of each way."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    ways = ("each trial its own", "one actor with a CPU", "one actor without a CPU")
    took: dict[str, list[float]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder:
        judge = Path(folder) / "judge"
        write_reward_model(judge)
        spec = load(
            "quickstart",
            [
                f"judge={judge}",
                f"storage={folder}/runs",
                "space={learning_rate: {loguniform: [1.0e-5, 1.0e-3]}}",
                "objective.constraints.kl=null",
                "resources.gpu=auto",
            ],
        )
        inputs = look_up(spec)
        record = create(spec, "placement", True, "python -m bench.judge_placement")
        with connected(None) as cluster:
            preparation = prepare(
                spec, inputs, record, cluster, Shipment(cluster.node), lambda text: None
            )
            prepared = preparation.search
            for _ in range(options.rounds):
                for way in ways:
                    took[way].append(seconds(spec, prepared, options.trials, way, cluster.gpus))
    for way, times in took.items():
        print(f"{way}: {median(times):.1f} s for {options.trials} trials, {times}")  # noqa: T201


if __name__ == "__main__":
    main()
