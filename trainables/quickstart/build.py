"""Make the base model of the quickstart: `python -m trainables.quickstart.build --out DIR`.

The base is a small GPT-2 that knows the answers of the world but gives them in every manner, good
and bad. It never sees a prompt of the data set that `world.rows` returns by default.
"""

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from trainables.quickstart.judge import judge
from trainables.quickstart.world import draw_answers, draw_prompt, draw_topic, rows

EOS, PAD = "<|endoftext|>", "<|pad|>"
VOCABULARY = 768
POSITIONS = 256

# The prompt ends in "Assistant:" and the answer brings its own space: byte-level BPE keeps " Sure"
# as one token, so a prompt ending in a space would leave the model a token it has never seen.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
{{- 'Assistant:' -}}
{%- generation -%}{{- ' ' + message.content | trim + eos_token -}}{%- endgeneration -%}
{%- else -%}
{{- message.role | capitalize + ': ' + message.content | trim + '\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}
"""

Conversation = list[dict[str, str]]


def converse(rng: random.Random, unseen: set[str], turns: int, wanted_share: float) -> Conversation:
    """Draw a conversation of question and answer turns that avoids the prompts in `unseen`."""
    messages: Conversation = []
    while len(messages) < 2 * turns:
        topic = draw_topic(rng)
        prompt = draw_prompt(topic, rng)
        wanted, unwanted = draw_answers(topic, rng)
        answer = wanted if rng.random() < wanted_share else unwanted
        if prompt not in unseen:
            messages.append({"role": "user", "content": prompt})
            messages.append({"role": "assistant", "content": answer})
    return messages


def train_tokenizer(texts: Iterator[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer that carries the chat template."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=EOS,
        bos_token=EOS,
        pad_token=PAD,
        model_max_length=POSITIONS,
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )


def new_model(tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    """A GPT-2 of 3 layers of 128 with random weights."""
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=POSITIONS,
        n_layer=3,
        n_embd=128,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        pad_token_id=tokenizer.pad_token_id,
        **ids,
    )
    model = GPT2LMHeadModel(config)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=48,
        pad_token_id=tokenizer.pad_token_id,
        **ids,
    )
    return model


def answer_loss(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, batch: list[Conversation]
) -> torch.Tensor:
    """Mean cross-entropy of the assistant's tokens, in nats per token."""
    encoded = tokenizer.apply_chat_template(
        batch,
        return_dict=True,
        return_assistant_tokens_mask=True,
        padding=True,
        tokenizer_kwargs={"padding_side": "right"},
        return_tensors="pt",
    )
    ids, answers = encoded["input_ids"], encoded["assistant_masks"].bool()
    logits = model(input_ids=ids, attention_mask=encoded["attention_mask"]).logits
    return cross_entropy(logits[:, :-1][answers[:, 1:]], ids[:, 1:][answers[:, 1:]])


@torch.inference_mode()
def sampled_score(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, prompts: list[str], seed: int
) -> float:
    """Share of answers, one sampled for each prompt at temperature 1, that the judge accepts."""
    encoded = tokenizer.apply_chat_template(
        [[{"role": "user", "content": prompt}] for prompt in prompts],
        add_generation_prompt=True,
        return_dict=True,
        padding=True,
        return_tensors="pt",
    )
    torch.manual_seed(seed)
    model.eval()
    tokens = model.generate(**encoded)[:, encoded["input_ids"].shape[1] :]
    answers = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return sum(judge(prompts, answers)) / len(prompts)


def build(
    out: Path, steps: int, seed: int, wanted_share: float, learning_rate: float
) -> dict[str, object]:
    """Train tokenizer and model, write them with `meta.json` to `out`, and return what it holds."""
    started = time.time()
    rng = random.Random(seed)
    held_out = [row["prompt"][0]["content"] for row in rows()]
    unseen = set(held_out)
    turns = (m for _ in range(4000) for m in converse(rng, unseen, 1, wanted_share))
    tokenizer = train_tokenizer(f"{m['role'].capitalize()}: {m['content']}\n" for m in turns)

    torch.manual_seed(seed)
    model = new_model(tokenizer)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    warm_up = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda i: min((i + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * i / steps)) + 0.01),
    )
    losses = []
    for step in range(steps):
        # 60 answers a step: single turns, as in the data set, and longer talks, as on a chat page.
        length = (1, 1, 2, 5)[step % 4]
        batch = [converse(rng, unseen, length, wanted_share) for _ in range(60 // length)]
        loss = answer_loss(model, tokenizer, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 100 == 0 or step == steps - 1:
            sys.stderr.write(
                f"step {step}: loss {loss.item():.3f}, {time.time() - started:.0f} s\n"
            )

    meta: dict[str, object] = {
        "command": f"python -m trainables.quickstart.build --out {out.name} --steps {steps}",
        "steps": steps,
        "seed": seed,
        "answers_per_step": 60,
        "learning_rate": learning_rate,
        "wanted_share": wanted_share,
        "parameters": model.num_parameters(),
        "first_loss": round(losses[0], 4),
        "last_loss": round(sum(losses[-100:]) / len(losses[-100:]), 4),
        "score": sampled_score(model, tokenizer, held_out[:512], seed),
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers")},
    }
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
    return meta


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--wanted-share", type=float, default=0.5)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    args = parser.parse_args()
    torch.set_num_threads(2)
    meta = build(args.out, args.steps, args.seed, args.wanted_share, args.learning_rate)
    sys.stderr.write(json.dumps(meta, indent=2) + "\n")


if __name__ == "__main__":
    main()
