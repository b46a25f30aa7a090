"""Make the base model of the quickstart: `python -m trainables.quickstart.build --out DIR`.

The base is a small GPT-2 that knows the answers of the world but gives them in every manner, good
and bad. It never sees a prompt of the data set that `world.rows` returns by default.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from trainables.quickstart.judge import judge
from trainables.quickstart.world import draw_answers, draw_prompt, draw_topic, rows

EOS, PAD = "<|endoftext|>", "<|pad|>"
VOCABULARY = 768
POSITIONS = 256
LEARNING_RATE = 2e-3
WANTED_SHARE = 0.5
ANSWERS_PER_STEP = 60

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


def converse(rng: random.Random, avoid: set[str], turns: int) -> Conversation:
    """Draw a conversation of question and answer turns with none of the prompts in `avoid`."""
    messages: Conversation = []
    while len(messages) < 2 * turns:
        topic = draw_topic(rng)
        prompt = draw_prompt(topic, rng)
        wanted, unwanted = draw_answers(topic, rng)
        answer = wanted if rng.random() < WANTED_SHARE else unwanted
        if prompt not in avoid:
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
        initializer_range=0.08,  # about 1 / sqrt(128); the 0.02 of GPT-2 suits its width of 768
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


def build(out: Path, steps: int, seed: int) -> dict[str, object]:
    """Train tokenizer and model, write them with `meta.json` to `out`, and return what it holds."""
    if out.exists():
        raise FileExistsError(f"{out} exists already; remove it or give another `--out`.")
    console = Console(stderr=True)
    started = time.monotonic()
    rng = random.Random(seed)
    prompts = [row["prompt"][0]["content"] for row in rows()]
    avoid = set(prompts)
    messages = (message for _ in range(4000) for message in converse(rng, avoid, turns=1))
    tokenizer = train_tokenizer(f"{m['role'].capitalize()}: {m['content']}\n" for m in messages)

    torch.manual_seed(seed)
    model = new_model(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98))
    warm_up = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda i: min((i + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * i / steps)) + 0.01),
    )
    model.train()
    losses = []
    for step in range(steps):
        # Single turns, as in the data set, and longer talks, as on a chat page.
        turns = (1, 1, 2, 5)[step % 4]
        batch = [converse(rng, avoid, turns) for _ in range(ANSWERS_PER_STEP // turns)]
        loss = answer_loss(model, tokenizer, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 100 == 0 or step == steps - 1:
            seconds = time.monotonic() - started
            console.print(f"step {step}: loss {loss.item():.3f}, {seconds:.0f} s")

    last = losses[-warm_up:]
    meta: dict[str, object] = {
        "command": "python -m trainables.quickstart.build"
        f" --out {out.name} --steps {steps} --seed {seed}",
        "steps": steps,
        "seed": seed,
        "answers_per_step": ANSWERS_PER_STEP,
        "learning_rate": LEARNING_RATE,
        "wanted_share": WANTED_SHARE,
        "parameters": model.num_parameters(),
        "first_loss": round(losses[0], 4),
        "last_loss": round(sum(last) / len(last), 4),
        "score": sampled_score(model, tokenizer, prompts[:512], seed),
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers")},
    }
    unfinished = out.with_name(out.name + ".tmp")
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    (unfinished / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
    unfinished.rename(out)
    return meta


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(2)
    meta = build(args.out, args.steps, args.seed)
    Console().print_json(data=meta)


if __name__ == "__main__":
    main()
