"""Warnings about a trial, each from a function of its own.

A figure that is missing or NaN causes none. Section 5 of docs/design.md defines the measures.
"""

import math
from collections.abc import Callable, Iterator

from results.doctor.finding import (
    LENGTH_RULE,
    Finding,
    figure,
    length_rule,
    longer_is_chosen,
    percent,
    prompts_of,
)
from results.doctor.ties import tied_answers, tied_pairs
from results.formatting import compact, number, plain
from results.run.run import Run
from results.run.trial import Trial
from search_spaces.configuration import configure, micro_batch_losses

LN2 = math.log(2)  # pair_loss without training: every delta is 0

# A share that differs by less than so many standard errors may be chance.
STANDARD_ERRORS = 2
PROMPTS = 128  # that answers are sampled on by default; for a run that does not say
# What length adds to a win rate, in shares: the same answers give both numbers, so chance does not.
OF_LENGTH = 0.05
# One 4-gram in ten more than in the reference's answers; in the quickstart only trials far beyond
# their limit on kl reach it. Where the reference's own is not known: one in five.
REPEATED_MORE, REPEATED = 0.1, 0.2
# Nats per answer, where the search has no limit of its own: the one it gets unless it sets or lifts
# it (search_spaces/objective.py). What a judge says turns less true as kl grows (Gao et al. 2022,
# arXiv:2210.10760).
KL = 20.0
# Nats per token: each token of the chosen answers 5 % less likely. In searches of the quickstart
# trials with worse answers than the reference's had -0.06 and less, the best ones more than 0.
CHOSEN_DRIFT = -0.05
# Three standard errors above an untrained model's 0.5 on 256 pairs: 3 * 0.5 / sqrt(256) = 0.094.
ACCURACY = 0.6
# One per cent above ln 2. Noise of s nats in delta, as from rounding, adds about s^2 / 8 to a trial
# that learnt nothing: 0.2 nats stay below.
PAIR_LOSS = 1.01 * LN2
# Half as long again, and the inverse: far more than another seed changes.
LONGER, SHORTER = 1.5, 1 / 1.5


def _diverged(run: Run, trial: Trial) -> Iterator[Finding]:
    # `finite` is the constraint that a loss or an objective which is not finite breaks.
    if trial.ended_by != "nan" and not _broken(trial, "finite"):
        return
    cause = f" ({plain(trial.cause).rstrip('.')})" if trial.cause else ""
    yield Finding(
        "diverged to NaN",
        f"Training broke down{cause}, so nothing that it measured counts. Lower learning_rate or "
        "max_grad_norm, or warm up for longer.",
    )


def _kl_blow_up(run: Run, trial: Trial) -> Iterator[Finding]:
    kl, limit = figure(trial.measures, "kl"), figure(run.limits.get("kl", {}), "max")
    if kl is None or kl <= (KL if limit is None else limit):
        return
    beyond = f"more than {KL:g}" if limit is None else f"beyond the search's limit of {limit:g}"
    yield Finding(
        "KL blow-up",
        f"kl is {kl:.1f} nats per answer, {beyond}: what the model writes went so far from the "
        "reference that a judge or pairs made for other answers tell little about it. Raise beta "
        "or lower learning_rate.",
    )


def _beyond_limits(run: Run, trial: Trial) -> Iterator[Finding]:
    covered = {"finite", "kl"} if any(_kl_blow_up(run, trial)) else {"finite"}
    for name in trial.constraints:
        if name in covered or not _broken(trial, name):
            continue
        bound, value, word = run.limits.get(name, {}), figure(trial.measures, name), plain(name)
        ends = {end: figure(bound, end) for end in ("min", "max")}
        limit = ", ".join(f"{end} {at:g}" for end, at in ends.items() if at is not None)
        yield Finding(
            f"beyond the {word} limit",
            f"{word} is {'not known' if value is None else number(value, 3)}, and the search has "
            f"a limit on it{f' ({limit})' if limit else ''}, so the trial cannot win. Where such "
            f"answers are fine, widen objective.constraints.{word}.",
        )


def _missing_eos(run: Run, trial: Trial) -> Iterator[Finding]:
    ended, before = figure(trial.measures, "ended"), figure(run.reference, "ended")
    # Both are shares of samples: the difference has the square root of two of a standard error.
    if ended is None or before is None or ended >= before - math.sqrt(2) * _by_chance(run):
        return
    yield Finding(
        "missing EOS",
        f"{percent(ended)} of the answers end with EOS, of the reference's {percent(before)}: "
        "the model forgets to stop and is cut off at evaluation.max_new_tokens. Lower "
        "learning_rate or raise beta, and see that few training pairs are cut at max_length.",
    )


def _repetition(run: Run, trial: Trial) -> Iterator[Finding]:
    repeated = figure(trial.measures, "repetition")
    if repeated is None or repeated <= REPEATED_MORE:
        return
    before = figure(run.reference, "repetition")
    if repeated <= (REPEATED if before is None else before + REPEATED_MORE):
        return
    than = "" if before is None else f", against {percent(before)} in the reference's"
    yield Finding(
        "repetitive answers",
        f"{percent(repeated)} of an answer's 4-grams repeat an earlier one{than}: the model "
        "loops, a first sign of collapse. Lower learning_rate, raise beta, or bound "
        "objective.constraints.repetition.",
    )


def _pairs_mislead(run: Run, trial: Trial) -> Iterator[Finding]:
    accuracy, win_rate = (figure(trial.measures, name) for name in ("accuracy", "win_rate"))
    before = _win_rate_before(run)
    if accuracy is None or win_rate is None:
        return
    if accuracy <= ACCURACY or win_rate >= before - _by_chance(run):
        return
    yield Finding(
        "pairs mislead",
        f"It ranks {percent(accuracy)} of the pairs right, but its win_rate is "
        f"{number(win_rate, 3)}, below the reference's {number(before, 3)}: it learnt to tell "
        "answers apart, not to write better ones. Trust win_rate, and raise beta, lower "
        "learning_rate or train on fewer pairs.",
    )


def _loss_above_ln2(run: Run, trial: Trial) -> Iterator[Finding]:
    loss = figure(trial.measures, "pair_loss")
    if loss is None or loss <= PAIR_LOSS:
        return
    yield Finding(
        "loss above ln 2",
        f"pair_loss is {number(loss, 3)}, and a model that is not trained at all has ln 2 = "
        f"{number(LN2, 3)}: the pairs that it ranks wrong, it ranks wrong by far. Lower "
        "learning_rate or raise beta.",
    )


def _displacement(run: Run, trial: Trial) -> Iterator[Finding]:
    """Likelihood displacement (Razin et al. 2024, arXiv:2410.08847)."""
    drift, margin, accuracy = (
        figure(trial.measures, name) for name in ("chosen_drift", "margin", "accuracy")
    )
    grown = (margin is not None and margin > 0) or (accuracy is not None and accuracy > 0.5)
    if drift is None or drift >= CHOSEN_DRIFT or not grown:
        return
    learnt = f"margin grew to {number(margin, 1)}" if margin is not None and margin > 0 else ""
    learnt = learnt or f"accuracy grew to {number(accuracy)}"
    losses = trial.params.get("loss_type") or (run.spec.get("training") or {}).get("loss_type")
    sft = "sft" in (losses or ())
    advice = "Raise" if sft else "Add the sft loss (loss_type: [sigmoid, sft]), raise"
    yield Finding(
        "likelihood displacement",
        f"chosen_drift is {number(drift, 3)} nats per token while {learnt}: the chosen answers "
        "themselves became less likely, the rejected ones even more so, and what the model says "
        f"instead may be neither. {advice} beta or lower learning_rate.",
    )


def _wins_by_length(run: Run, trial: Trial) -> Iterator[Finding]:
    won, controlled, ratio = (
        figure(trial.measures, name)
        for name in ("win_rate", "win_rate_length_controlled", "length_ratio")
    )
    if won is None or controlled is None or won <= _win_rate_before(run):
        return
    if won - controlled < OF_LENGTH:
        return
    length = "" if ratio is None else f" (length_ratio is {number(ratio)})"
    yield Finding(
        "wins by length",
        f"win_rate is {number(won, 3)}, but {number(controlled, 3)} if both answers were equally "
        f"long{length}: part of what the judge likes is length. Compare trials by "
        "win_rate_length_controlled, or bound objective.constraints.length_ratio.",
    )


def _length(run: Run, trial: Trial) -> Iterator[Finding]:
    ratio = figure(trial.measures, "length_ratio")
    if ratio is None or SHORTER <= ratio <= LONGER:
        return
    title = "length inflation" if ratio > 1 else "shortened answers"
    meant = (
        "length that a judge may take for quality, or answers that do not find their end"
        if ratio > 1
        else "answers that may leave out what was asked for"
    )
    yield Finding(
        title,
        f"Its answers have {number(ratio)} times the tokens of the reference's: {meant}. Read "
        "some, and bound objective.constraints.length_ratio if they are worse for it.",
    )


def _beaten_by_length(run: Run, trial: Trial) -> Iterator[Finding]:
    accuracy, longer = figure(trial.measures, "accuracy"), longer_is_chosen(run, "validation")
    if accuracy is None or longer is None:
        return
    word, right = length_rule(longer)
    if right < LENGTH_RULE or accuracy >= right:
        return
    yield Finding(
        "beaten by length",
        f'"Prefer the {word} answer" ranks {percent(right)} of the validation pairs right, this '
        f"trial {percent(accuracy)}: what it learnt may be no more than that. Train on more "
        "pairs, or on pairs whose two answers are about equally long.",
    )


def _micro_batch(run: Run, trial: Trial) -> Iterator[Finding]:
    if not (size := trial.attrs.get("micro_batch")):
        return
    given = configure(run.spec.get("training") or {}, run.spec.get("lora"), trial.params)
    losses = micro_batch_losses(given.dpo)
    changed = (
        f"its loss {' and '.join(losses)} depends on the micro-batch, so this is not quite the "
        "configuration that was asked for"
        if losses
        else "its loss is a mean over pairs, which does not depend on the micro-batch"
    )
    yield Finding(
        "micro-batch halved",
        f"Memory was too short, so it ran in micro-batches of {compact(size)} with more "
        f"accumulation. Its effective batch is the same, and {changed}. To avoid it, lower "
        "per_device_train_batch_size or give each trial more of the device.",
    )


def _restarts(run: Run, trial: Trial) -> Iterator[Finding]:
    if not (times := trial.attrs.get("restarts")):
        return
    often = "once" if times == 1 else f"{compact(times)} times"
    yield Finding(
        "restarted after crashes",
        f"Its process died {often}, and it resumed from its newest checkpoint. "
        "What it measured counts; if it happens often, see whether the machine runs out of memory.",
    )


# Most serious first.
CHECKS: tuple[Callable[[Run, Trial], Iterator[Finding]], ...] = (
    _diverged,
    _kl_blow_up,
    _beyond_limits,
    _missing_eos,
    _repetition,
    _pairs_mislead,
    _loss_above_ln2,
    _displacement,
    _wins_by_length,
    _length,
    _beaten_by_length,
    tied_answers,
    tied_pairs,
    _micro_batch,
    _restarts,
)


def _by_chance(run: Run) -> float:
    """By how much a share of the prompts may be off: a share of n has at most 0.5 / sqrt(n)."""
    return STANDARD_ERRORS * 0.5 / math.sqrt(prompts_of(run) or PROMPTS)


def _broken(trial: Trial, name: str) -> bool:
    return not trial.constraints.get(name, 0.0) <= 0  # NaN breaks, as in results.run.trial


def _win_rate_before(run: Run) -> float:
    """The reference's win rate: against itself every prompt ties."""
    before = figure(run.reference, "win_rate")
    return 0.5 if before is None else before


def trial_warnings(run: Run, trial: Trial) -> list[Finding]:
    """Return the warnings about a trial's last measures and its course, most serious first."""
    return [finding for check in CHECKS for finding in check(run, trial)]
