"""Log-probs, samples and the evaluation, on models small enough to enumerate."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from trl.trainer import utils

from trainables.evaluation.batch_size import BatchSize
from trainables.evaluation.draws import TokenDraws
from trainables.evaluation.evaluate import HeldOut, evaluate
from trainables.evaluation.logprobs import Ids, sequence_logps
from trainables.evaluation.sampling import (
    Answer,
    DivergedError,
    Prompt,
    Sampling,
    distinct_prompts,
    last_user_turn,
    sample_answers,
)

VOCABULARY = {"<eos>": 0, "<pad>": 1, "a": 2, "b": 3, "c": 4}
EOS, PAD = 0, 1
POSITIONS = 32

# transformers 5.23 renamed it; PEFT, and whoever supports 5.0 as well, still uses the old name.
CHECKPOINTING_WAS_RENAMED = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<pad>")


def headed(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """Give a model the head that `load_scorer` gives."""
    utils.add_fused_lm_head(model)
    return model.eval()


def tiny_model(seed: int = 0, vocabulary: int = len(VOCABULARY)) -> GPT2LMHeadModel:
    """Build a random GPT-2; weights as wide as these make it opinionated."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=POSITIONS,
        n_embd=16,
        n_layer=2,
        n_head=2,
        initializer_range=0.3,
        bos_token_id=EOS,
        eos_token_id=EOS,
    )
    return headed(GPT2LMHeadModel(config))


def naive_logp(model: Any, prompt: list[int], answer: list[int]) -> float:
    """Score one answer by itself, token by token: nothing is padded."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0].double()
    before = len(prompt) - 1
    return sum(float(logits[before + i].log_softmax(-1)[token]) for i, token in enumerate(answer))


def rows_of(count: int, vocabulary: int, seed: int = 0) -> tuple[list[list[int]], list[list[int]]]:
    rng = np.random.default_rng(seed)
    draw = [rng.integers(2, vocabulary, rng.integers(1, 12)).tolist() for _ in range(2 * count)]
    return draw[:count], draw[count:]


def answers_of(
    model: Any,
    tokenizer: Any,
    prompt_ids: list[Ids],
    *,
    max_new_tokens: int = 8,
    seed: int = 0,
    batch_size: int = 16,
    precision: str = "fp32",
) -> list[Answer]:
    """Sample answers to prompts whose rows are their positions."""
    prompts = [Prompt(row, ids, "") for row, ids in enumerate(prompt_ids)]
    sampling = Sampling(max_new_tokens, seed, precision, BatchSize(batch_size))
    return sample_answers(model, tokenizer, prompts, sampling)


# Log-probs


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_log_probs_equal_those_of_one_answer_at_a_time(batch_size: int) -> None:
    model = tiny_model(vocabulary=40)
    prompts, answers = rows_of(11, 40)
    found = sequence_logps(model, prompts, answers, batch_size=batch_size, pad_token_id=PAD)
    expected = [naive_logp(model, *row) for row in zip(prompts, answers, strict=True)]
    assert found.dtype == np.float32
    assert found == pytest.approx(expected, abs=1e-4)


def test_only_the_positions_of_answers_are_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    scored = []
    function = utils._ChunkedLogProbFunction

    def apply(hidden: torch.Tensor, *arguments: Any) -> Any:
        scored.append(len(hidden))
        return function.apply(hidden, *arguments)

    monkeypatch.setattr(utils, "_ChunkedLogProbFunction", SimpleNamespace(apply=apply))
    prompts, answers = rows_of(11, 40)
    sequence_logps(tiny_model(vocabulary=40), prompts, answers, batch_size=4, pad_token_id=PAD)
    assert sum(scored) == sum(len(answer) for answer in answers)


def test_an_answer_without_tokens_is_certain_and_a_prompt_without_tokens_is_refused() -> None:
    model = tiny_model()
    options = {"batch_size": 2, "pad_token_id": PAD}
    found = sequence_logps(model, [[2], [3]], [[], [4]], **options)
    assert found[0] == 0.0 > found[1]
    with pytest.raises(ValueError, match="prompt without a token"):
        sequence_logps(model, [[]], [[2]], **options)


def test_log_probs_of_a_broken_model_are_nan() -> None:
    model = tiny_model()
    model.transformer.h[0].mlp.c_fc.weight.data[0, 0] = math.nan
    assert np.isnan(sequence_logps(model, [[2]], [[3, 4]], batch_size=1, pad_token_id=PAD)).all()


def test_log_probs_in_bf16_are_those_of_fp32_within_its_precision() -> None:
    model = tiny_model()
    prompts, answers = rows_of(8, 5)
    options = {"batch_size": 8, "pad_token_id": PAD}
    exact = sequence_logps(model, prompts, answers, **options)
    rough = sequence_logps(model, prompts, answers, **options, autocast=torch.bfloat16)
    assert not np.array_equal(rough, exact)
    assert rough == pytest.approx(exact, rel=0.05, abs=0.1)


def test_a_model_in_the_middle_of_training_is_measured_without_dropout_and_put_back() -> None:
    model = tiny_model()
    prompts, answers = rows_of(6, 5)
    options = {"batch_size": 6, "pad_token_id": PAD}
    expected = sequence_logps(model, prompts, answers, **options)
    model.train()
    model.transformer.drop.eval()  # a module that somebody froze stays as it was
    assert model.config.resid_pdrop == 0.1
    assert np.array_equal(sequence_logps(model, prompts, answers, **options), expected)
    assert model.training and model.transformer.h[0].training
    assert not model.transformer.drop.training


# Samples


def test_answers_repeat_with_their_seed_and_with_no_other(tokenizer: Any) -> None:
    options: dict[str, Any] = {"max_new_tokens": 8, "batch_size": 16}
    prompts, _ = rows_of(32, 5)
    first, again, other = (
        answers_of(tiny_model(), tokenizer, prompts, seed=seed, **options) for seed in (7, 7, 8)
    )
    assert first == again
    assert first != other


def test_sampling_leaves_random_state_mode_and_generation_config_alone(tokenizer: Any) -> None:
    model = tiny_model().train()
    model.generation_config.repetition_penalty = 1.3
    config = model.generation_config.to_dict()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    answers_of(model, tokenizer, [[2, 3]], max_new_tokens=5, seed=1, batch_size=1)
    assert torch.equal(torch.rand(3), expected)
    assert model.training
    assert model.generation_config.to_dict() == config


def test_what_a_model_ships_for_generation_does_not_bend_its_samples(tokenizer: Any) -> None:
    options: dict[str, Any] = {"max_new_tokens": 8, "seed": 3, "batch_size": 32}
    plain, tuned = tiny_model(), tiny_model()
    tuned.generation_config.update(
        temperature=0.01, top_k=1, top_p=0.5, repetition_penalty=5.0, no_repeat_ngram_size=1
    )
    prompts = [[2, 3]] * 32
    assert answers_of(tuned, tokenizer, prompts, **options) == answers_of(
        plain, tokenizer, prompts, **options
    )


def test_answers_are_drawn_from_the_models_own_distribution(tokenizer: Any) -> None:
    model, prompt, n = tiny_model(), [2, 3, 4], 4000
    answers = answers_of(model, tokenizer, [prompt] * n, max_new_tokens=1, seed=0, batch_size=n)
    with torch.no_grad():
        probabilities = model(torch.tensor([prompt])).logits[0, -1].softmax(-1).tolist()
    counts = Counter(answer.ids[0] for answer in answers)
    for token, probability in enumerate(probabilities):
        four_errors = 4 * math.sqrt(probability * (1 - probability) / n)
        assert counts[token] / n == pytest.approx(probability, abs=four_errors)


def test_answers_end_with_eos_or_at_the_limit(tokenizer: Any) -> None:
    answers = answers_of(
        tiny_model(), tokenizer, [[2, 3]] * 64, max_new_tokens=4, seed=0, batch_size=64
    )
    assert {answer.ended for answer in answers} == {True, False}
    for answer in answers:
        assert answer.ended == (answer.ids[-1] == EOS)
        assert EOS not in answer.ids[:-1]
        assert len(answer.ids) == 4 or answer.ended
        letters = [token for token in answer.ids if token > PAD]
        assert answer.text == tokenizer.decode(letters)
        assert answer.text == answer.text.lstrip()


@pytest.mark.parametrize("size", [1, 3, 7, 16])
def test_an_answer_is_the_same_in_every_batch(tokenizer: Any, size: int) -> None:
    model = tiny_model(seed=3)
    prompts, _ = rows_of(25, 5)
    answers = answers_of(model, tokenizer, prompts, batch_size=25)
    assert len({tuple(answer.ids) for answer in answers}) > 10
    assert answers_of(model, tokenizer, prompts, batch_size=size) == answers


def test_an_answer_does_not_depend_on_what_else_is_asked(tokenizer: Any) -> None:
    model, sampling = tiny_model(seed=3), Sampling(max_new_tokens=8, seed=4)
    prompts = [Prompt(100 + i, ids, "") for i, ids in enumerate(rows_of(12, 5)[0])]
    answers = sample_answers(model, tokenizer, prompts, sampling)
    assert sample_answers(model, tokenizer, prompts[::-2], sampling) == answers[::-2]


def test_a_prompt_that_comes_twice_gets_two_independent_answers(tokenizer: Any) -> None:
    answers = answers_of(tiny_model(), tokenizer, [[2, 3, 4]] * 40)
    assert len({tuple(answer.ids) for answer in answers}) > 20


def test_draws_of_a_large_vocabulary_withstand_rounding() -> None:
    # With one uniform number and the inverse of the distribution function, one draw in a hundred
    # changes: tens of thousands of boundaries move. Here it is the distance of the distributions.
    torch.manual_seed(0)
    logits = 2.8 * torch.randn(256, 30_011)
    rounded = logits + 1e-5 * torch.randn_like(logits)
    none = torch.zeros(0)
    tokens = [TokenDraws(1, range(256))(none, x).argmax(dim=1) for x in (logits, rounded)]
    assert len(set(tokens[0].tolist())) > 200
    assert torch.equal(*tokens)


@pytest.mark.parametrize("vocabulary", [1, 2, 3, 10, 17])
def test_draws_follow_the_distribution_whatever_the_blocks_leave_over(vocabulary: int) -> None:
    n = 20_000
    logits = torch.linspace(-2, 1, vocabulary)
    logits[vocabulary // 2] = -math.inf if vocabulary > 1 else 0.0  # a token that cannot come
    draws = TokenDraws(0, range(n))(torch.zeros(0), logits.repeat(n, 1)).argmax(dim=1)
    shares = torch.bincount(draws, minlength=vocabulary) / n
    for share, probability in zip(shares.tolist(), logits.softmax(0).tolist(), strict=True):
        four_errors = 4 * math.sqrt(probability * (1 - probability) / n)
        assert share == pytest.approx(probability, abs=four_errors)


def test_draws_at_the_next_position_are_others() -> None:
    draws, logits = TokenDraws(0, [5]), torch.zeros(1, 10_000)
    tokens = [int(draws(torch.zeros(0), logits).argmax()) for _ in range(20)]
    assert len(set(tokens)) > 15


class SmallDevice:
    """Runs out of memory where more than `most` sequences go through a model at once."""

    def __init__(self, model: torch.nn.Module, most: int) -> None:
        self.sizes: list[int] = []

        def check(module: Any, inputs: Any, options: dict[str, Any]) -> None:
            self.sizes.append(len(options["input_ids"]))
            if self.sizes[-1] > most:
                raise torch.OutOfMemoryError("CUDA out of memory.")

        model.register_forward_pre_hook(check, with_kwargs=True)


def test_a_batch_that_does_not_fit_is_halved_and_the_answers_stay(
    tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    prompts, _ = rows_of(20, 5)
    expected = answers_of(tiny_model(), tokenizer, prompts, batch_size=16)
    model = tiny_model()
    device = SmallDevice(model, most=5)
    assert answers_of(model, tokenizer, prompts, batch_size=16) == expected
    assert device.sizes[:3] == [16, 8, 4]
    assert set(device.sizes[3:]) == {4}
    assert "16 answers at a time: continuing with 8" in caplog.text


def test_a_device_without_room_for_one_prompt_is_said(tokenizer: Any) -> None:
    model = tiny_model()
    device = SmallDevice(model, most=0)
    with pytest.raises(torch.OutOfMemoryError):
        answers_of(model, tokenizer, [[2], [3], [4]], batch_size=4)
    assert device.sizes == [3, 2, 1]


def test_an_answer_takes_only_the_positions_that_its_prompt_leaves(tokenizer: Any) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.transformer.ln_f.bias.zero_()
        model.lm_head.weight[EOS] = 0.0
    prompts = [[2] * 5, [2] * (POSITIONS - 3), [2] * POSITIONS, [3] * (POSITIONS - 3)]
    answers = answers_of(model, tokenizer, prompts, max_new_tokens=10, seed=0, batch_size=4)
    most = [10, 3, 0, 3]
    assert all(len(a.ids) == m or a.ended for a, m in zip(answers, most, strict=True))
    assert all(len(a.ids) <= m for a, m in zip(answers, most, strict=True))
    assert (answers[2].text, answers[2].ended) == ("", False)


@CHECKPOINTING_WAS_RENAMED
def test_generation_keeps_its_cache_under_gradient_checkpointing(tokenizer: Any) -> None:
    model = tiny_model().train()
    model.gradient_checkpointing_enable()
    model.config.use_cache = False  # what the trainer sets beside it
    widths: list[int] = []
    hook = model.transformer.wte.register_forward_hook(
        lambda module, inputs, output: widths.append(inputs[0].shape[1])
    )
    answers_of(model, tokenizer, [[2, 3, 4]] * 4, max_new_tokens=5, seed=0, batch_size=4)
    hook.remove()
    assert widths[0] == 3
    assert set(widths[1:]) == {1}
    assert model.is_gradient_checkpointing
    assert model.config.use_cache is False


@pytest.fixture
def adapted() -> Iterator[Any]:
    """Yield a LoRA model whose adapter says something: its B matrices are zero at first."""
    torch.manual_seed(0)
    config = LoraConfig(target_modules=["c_attn"], r=2, fan_in_fan_out=True, task_type="CAUSAL_LM")
    model = get_peft_model(tiny_model(), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter.data)
    yield model.eval()


@CHECKPOINTING_WAS_RENAMED
def test_an_adapter_counts_while_it_is_on(adapted: Any, tokenizer: Any) -> None:
    prompts, answers = rows_of(6, 5)
    options = {"batch_size": 6, "pad_token_id": PAD}
    sampling: dict[str, Any] = {"max_new_tokens": 8, "seed": 0, "batch_size": 6}
    with_adapter = sequence_logps(adapted, prompts, answers, **options)
    sampled = answers_of(adapted, tokenizer, prompts, **sampling)
    with adapted.disable_adapter():
        without = sequence_logps(adapted, prompts, answers, **options)
        sampled_without = answers_of(adapted, tokenizer, prompts, **sampling)
    assert without == pytest.approx(
        sequence_logps(tiny_model(), prompts, answers, **options), abs=1e-5
    )
    assert sampled_without == answers_of(tiny_model(), tokenizer, prompts, **sampling)

    merged = adapted.merge_and_unload()
    assert with_adapter == pytest.approx(
        sequence_logps(merged, prompts, answers, **options), abs=1e-4
    )
    assert sampled == answers_of(merged, tokenizer, prompts, **sampling)
    assert np.abs(with_adapter - without).max() > 0.1
    assert sampled != sampled_without


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_that_diverged_is_not_sampled_from(tokenizer: Any, value: float) -> None:
    model = tiny_model()
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight * value)
    with pytest.raises(DivergedError):
        answers_of(model, tokenizer, [[2, 3]], max_new_tokens=4, seed=0, batch_size=1)


def test_kl_from_samples_is_the_exact_kl(tokenizer: Any) -> None:
    policy, reference, prompt, n = tiny_model(seed=1), tiny_model(seed=2), [2, 3], 4000
    # Every answer of at most two tokens, EOS ending it early.
    answers = [[EOS]] + [list(pair) for pair in itertools.product(range(1, 5), range(5))]
    log_p, log_q = (
        np.array([naive_logp(model, prompt, answer) for answer in answers])
        for model in (policy, reference)
    )
    assert np.exp(log_p).sum() == pytest.approx(1.0, abs=1e-5)
    exact = float((np.exp(log_p) * (log_p - log_q)).sum())
    variance = float((np.exp(log_p) * (log_p - log_q - exact) ** 2).sum())

    sampled = answers_of(policy, tokenizer, [prompt] * n, max_new_tokens=2, seed=0, batch_size=n)
    ids = [answer.ids for answer in sampled]
    estimates = [
        sequence_logps(model, [prompt] * n, ids, batch_size=n, pad_token_id=PAD)
        for model in (policy, reference)
    ]
    estimate = float((estimates[0] - estimates[1]).mean())
    assert exact > 0.1
    assert estimate == pytest.approx(exact, abs=4 * math.sqrt(variance / n))


# The evaluation


def test_distinct_prompts_are_the_first_of_the_file_and_keep_their_rows() -> None:
    pairs = {
        "row": [10, 20, 30, 40, 50, 60],
        "prompt": [[{"role": "user", "content": text}] for text in "abacbd"],
        "prompt_ids": [[1], [2], [1], [3], [2], [4]],
    }
    expected = [Prompt(10, [1], "a"), Prompt(20, [2], "b"), Prompt(40, [3], "c")]
    assert distinct_prompts(pairs, 3) == expected
    assert distinct_prompts(pairs, 9) == [*expected, Prompt(60, [4], "d")]


def test_a_judge_sees_the_last_user_turn() -> None:
    turns = [("user", "first"), ("assistant", "yes"), ("user", "second")]
    assert last_user_turn([{"role": r, "content": c} for r, c in turns]) == "second"
    assert last_user_turn([{"role": "system", "content": "only"}]) == "only"


def how_many_a(prompts: list[str], answers: list[str]) -> list[float]:
    return [float(answer.count("a")) for answer in answers]


class World:
    """Twelve pairs on eight prompts, with the reference's log-probs and answers."""

    def __init__(self, tokenizer: Any, reference: GPT2LMHeadModel) -> None:
        prompts, chosen = rows_of(12, 5, seed=1)
        _, rejected = rows_of(12, 5, seed=2)
        prompts[8:] = prompts[:4]
        self.tokenizer, self.reference = tokenizer, reference
        self.pairs = {
            "row": list(range(100, 112)),
            "prompt": [[{"role": "user", "content": f"question {i % 8}"}] for i in range(12)],
            "prompt_ids": prompts,
            "chosen_ids": chosen,
            "rejected_ids": rejected,
        }
        both = self.score(prompts * 2, chosen + rejected)
        self.ref_chosen, self.ref_rejected = np.split(both, 2)
        self.answers = [
            {"row": 100 + i, "tokens": 4, "score": score}
            for i, score in enumerate([0.0, 1.0, 2.0, 3.0] * 2)
        ]

    def score(self, prompts: list[Ids], answers: list[Ids], size: int = 24) -> Any:
        return sequence_logps(self.reference, prompts, answers, batch_size=size, pad_token_id=PAD)

    def evaluate(self, model: Any, judge: Any, prompts: int = 8, size: int = 24) -> Any:
        pairs: Any = self.pairs  # a mapping of columns serves as well as a Dataset
        held_out = HeldOut(pairs, self.ref_chosen, self.ref_rejected, self.answers, prompts)
        sampling = Sampling(max_new_tokens=6, seed=0, batch=BatchSize(size))
        return evaluate(model, self.tokenizer, held_out, sampling, self.score, judge)


@pytest.fixture(scope="module")
def world(tokenizer: Any) -> World:
    return World(tokenizer, tiny_model())


def test_an_untrained_policy_measures_as_the_reference(world: World) -> None:
    evaluation = world.evaluate(tiny_model(), how_many_a)
    measures = evaluation.measures
    assert measures["pair_loss"] == pytest.approx(math.log(2))
    assert measures["accuracy"] == 0.5
    assert [measures[name] for name in ("margin", "chosen_drift", "kl")] == [0.0, 0.0, 0.0]
    assert evaluation.deltas.dtype == np.float32
    assert not evaluation.deltas.any()


def test_an_evaluation_agrees_with_its_parts(world: World) -> None:
    policy = tiny_model(seed=9)
    evaluation = world.evaluate(policy, how_many_a)
    pairs, samples, measures = world.pairs, evaluation.samples, evaluation.measures
    first = [
        naive_logp(model, pairs["prompt_ids"][0], pairs[side][0])
        for side in ("chosen_ids", "rejected_ids")
        for model in (policy, world.reference)
    ]
    assert evaluation.deltas[0] == pytest.approx(
        first[0] - first[1] - first[2] + first[3], abs=1e-4
    )
    assert measures["margin"] == pytest.approx(evaluation.deltas.mean(), abs=1e-5)

    assert [sample["row"] for sample in samples] == list(range(100, 108))
    assert [sample["prompt"] for sample in samples] == [f"question {i}" for i in range(8)]
    assert [s["score"] for s in samples] == [float(s["answer"].count("a")) for s in samples]
    assert measures["judge_score"] == np.mean([sample["score"] for sample in samples])
    differences = [
        s["score"] - line["score"] for s, line in zip(samples, world.answers, strict=True)
    ]
    half_ties = [1.0 if d > 0 else 0.5 if d == 0 else 0.0 for d in differences]
    assert measures["win_rate"] == np.mean(half_ties)
    assert measures["kl"] == pytest.approx(np.mean([sample["log_ratio"] for sample in samples]))
    assert measures["length_ratio"] == np.mean([sample["tokens"] for sample in samples]) / 4
    assert measures["ended"] == np.mean([sample["ended"] for sample in samples])


def test_only_as_many_prompts_are_sampled_as_asked_for(world: World) -> None:
    rows = [sample["row"] for sample in world.evaluate(tiny_model(), None, prompts=3).samples]
    assert rows == [100, 101, 102]


def test_an_evaluation_that_does_not_fit_measures_the_same_in_smaller_batches(
    world: World,
) -> None:
    expected = world.evaluate(tiny_model(seed=9), how_many_a)
    policy = tiny_model(seed=9)
    device = SmallDevice(policy, most=6)
    found = world.evaluate(policy, how_many_a)
    assert [sample["answer"] for sample in found.samples] == [
        sample["answer"] for sample in expected.samples
    ]
    assert found.measures == pytest.approx(expected.measures, abs=1e-5)
    assert device.sizes.count(24) == 1  # halved once for all passes
    assert max(device.sizes[3:]) <= 6


def test_without_a_judge_the_samples_still_show_health_and_kl(world: World) -> None:
    evaluation = world.evaluate(tiny_model(seed=9), None)
    missing = {name for name, value in evaluation.measures.items() if value is None}
    assert missing == {"win_rate", "win_rate_length_controlled", "judge_score"}
    assert all(sample["score"] is None for sample in evaluation.samples)


def test_a_policy_that_diverged_measures_as_nan(world: World) -> None:
    model = tiny_model()
    model.transformer.ln_f.weight.data.fill_(math.nan)
    evaluation = world.evaluate(model, how_many_a)
    assert set(evaluation.measures) == set(world.evaluate(tiny_model(), how_many_a).measures)
    assert all(math.isnan(value) for value in evaluation.measures.values())
    assert np.isnan(evaluation.deltas).all()
    assert evaluation.samples == []


@pytest.mark.gpu
def test_on_a_gpu_a_diverged_model_does_not_take_the_device_with_it(tokenizer: Any) -> None:
    model = tiny_model().cuda()
    options: dict[str, Any] = {"max_new_tokens": 8, "seed": 0, "batch_size": 4}
    state = torch.cuda.get_rng_state()
    healthy = answers_of(model, tokenizer, [[2, 3]] * 4, **options, precision="bf16")
    assert torch.equal(torch.cuda.get_rng_state(), state)
    broken = tiny_model().cuda()
    broken.transformer.ln_f.weight.data.fill_(math.nan)
    with pytest.raises(DivergedError):
        answers_of(broken, tokenizer, [[2, 3]] * 4, **options)
    again = answers_of(model, tokenizer, [[2, 3]] * 4, **options, precision="bf16")
    assert again == healthy


@pytest.mark.gpu
def test_on_a_gpu_log_probs_are_those_of_the_cpu_and_fit_beside_training() -> None:
    prompts, answers = rows_of(11, 40)
    options: dict[str, Any] = {"batch_size": 64, "pad_token_id": PAD}
    expected = sequence_logps(tiny_model(vocabulary=40), prompts, answers, **options)
    found = sequence_logps(tiny_model(vocabulary=40).cuda(), prompts, answers, **options)
    assert found == pytest.approx(expected, abs=1e-3)

    # GPT-2's vocabulary at 1,024 tokens: 64 rows of logits would be 13 GB in fp32.
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2)
    large = headed(GPT2LMHeadModel(config)).cuda()
    torch.cuda.reset_peak_memory_stats()
    sequence_logps(large, [[2]] * 64, [[3] * 1000] * 64, **options, autocast=torch.bfloat16)
    assert torch.cuda.max_memory_allocated() < 2e9
