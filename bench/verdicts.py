"""Simulate whole searches and count how often their verdict is right.

    python -m bench.verdicts [--searches 2000] [--seed-deviation 0.02]

Nothing is trained: what is simulated is what verification measures. The verdict itself is
`tune.verdict.decide`, as a search calls it.
"""

import argparse
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from search_spaces.spec import Spec, load
from tune.verdict import Measured, decide, fresh_seeds

TRIALS = 14  # of each simulated search
VALIDATION_PROMPTS = 128
EFFECT = 0.1  # points of win rate by which the better configuration beats the reference


@dataclass(frozen=True)
class World:
    """How answers win.

    Attributes:
        exact: the judge says right or wrong, as the quickstart's, so that answers often tie; else
            it gives a real number, as a reward model does, and they never do.
        deviation: of a run's true win rate over seeds.
        spread: how unlike prompts are: the standard deviation of a prompt's own effect.
    """

    exact: bool
    deviation: float
    spread: float = 0.1

    def gains(
        self, effect: float, prompts: np.ndarray, seen: np.ndarray, generator: np.random.Generator
    ) -> np.ndarray:
        """Draw win - 1/2 for each prompt, `(prompts,)`.

        Args:
            effect: the run's true win rate less 1/2.
            prompts: how the reference does on each prompt, `(prompts,)`: the probability that its
                answer is right; or, where answers never tie, how much easier it is to beat there.
            seen: the reference's own sampled answers, right or not, or their quantiles.
        """
        if self.exact:
            # A win rate of 1/2 + e is a share of right answers of the reference's + 2 e.
            right = generator.random(len(prompts)) < np.clip(prompts + 2 * effect, 0, 1)
            return (right.astype(float) - seen) / 2
        chance = np.clip(0.5 + effect + prompts + (0.5 - seen), 0, 1)
        return (generator.random(len(prompts)) < chance) - 0.5

    def split(self, count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw the prompts of a split and the reference's answers to them."""
        if self.exact:
            prompts = generator.beta(2, 2, count)
            return prompts, (generator.random(count) < prompts).astype(float)
        return generator.normal(0, self.spread, count), generator.random(count)


def search(
    spec: Spec, effects: np.ndarray, world: World, generator: np.random.Generator
) -> tuple[int | None, list[int], np.ndarray]:
    """Simulate one search; return the winner, if any, the finalists and each trial's own effect.

    Args:
        effects: true win rate less 1/2 of each configuration, in the mean over seeds, `(trials,)`.

    Each trial has luck with its seed. The finalists are those that look best on the validation
    prompts, so theirs is good luck more often than not: that is what fresh seeds are for.
    """
    own = effects + world.deviation * generator.standard_normal(len(effects))
    validation = world.split(VALIDATION_PROMPTS, generator)
    looks = [world.gains(effect, *validation, generator).mean() for effect in own]
    finalists = np.argsort(looks)[::-1][: spec.verify.finalists].tolist()
    test = world.split(spec.verify.prompts, generator)
    fresh = fresh_seeds(spec.search.seed, spec.verify.seeds)
    measured = {}
    for number in finalists:
        for seed in (None, *fresh):
            luck = world.deviation * generator.standard_normal()
            effect = own[number] if seed is None else effects[number] + luck
            gains = world.gains(effect, *test, generator)
            measures: dict[str, float | None] = {"win_rate": 0.5 + gains.mean(), "kl": 1.0}
            measured[number, seed] = Measured(measures, gains, np.array([]))
    params: dict[int, dict[str, Any]] = {number: {} for number in finalists}
    verdict = decide(spec.objective, spec.search.seed, fresh, params, measured)
    return verdict["winner"], finalists, own


def rates(
    spec: Spec, effects: np.ndarray, world: World, searches: int, seed: int = 0
) -> dict[str, float]:
    """Return the share of searches that name any configuration; whose model is no better than the
    reference although one is named; that name the best one; and in which that is a finalist at all.
    """
    generator = np.random.default_rng(seed)
    counts: Counter[str] = Counter()
    for _ in range(searches):
        winner, finalists, own = search(spec, effects, world, generator)
        counts["any"] += winner is not None
        counts["no better"] += winner is not None and own[winner] <= 0
        counts["best"] += winner == int(np.argmax(effects))
        counts["found"] += int(np.argmax(effects)) in finalists
    return {name: counts[name] / searches for name in ("any", "no better", "best", "found")}


def table(searches: int, deviation: float) -> list[dict[str, Any]]:
    """Return false and right namings for each number of finalists and each kind of judge."""
    rows = []
    no_effect = np.zeros(TRIALS)
    one_better = np.zeros(TRIALS)
    one_better[0] = EFFECT
    for exact in (True, False):
        world = World(exact, deviation)
        for finalists in (1, 2, 3):
            spec = load("quickstart", [f"verify.finalists={finalists}"])
            alike, better = (
                rates(spec, effects, world, searches) for effects in (no_effect, one_better)
            )
            rows.append(
                {
                    "judge": "right or wrong" if exact else "a real number",
                    "finalists": finalists,
                    "false": alike["any"],
                    "no better": alike["no better"],
                    "right": better["best"],
                    "found": better["found"],
                }
            )
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--searches", type=int, default=2000)
    parser.add_argument("--seed-deviation", type=float, default=0.02)
    options = parser.parse_args()
    for row in table(options.searches, options.seed_deviation):
        print(row, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
