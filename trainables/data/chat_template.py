"""The one chat template of a search: settled once, saved with the tokenizer for all that follows.

A conversation is cut where the model begins to write. Before the cut is the template of the
prompt with its generation prompt, exactly what the model sees when it generates; after it, the rest
of the template of the whole conversation, up to the end of the assistant's turn.
"""

import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import TemplateError

from search_spaces.errors import UserError
from trainables.data.messages import Message
from trainables.data.texts import TEMPLATE_TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OURS = Path(__file__).with_name("chat_template.jinja")


class Texts(NamedTuple):
    """A rendered pair; each answer follows the prompt without anything between."""

    prompt: str
    chosen: str
    rejected: str


class Tokens(NamedTuple):
    """A tokenised pair, and how many of its answers would have merged with the prompt."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    merged: int


class Unrenderable(Exception):
    """The template refuses a conversation, or writes its prompt differently once it is answered."""


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer whose template is settled, and how that template ends an answer.

    Attributes:
        tokenizer: has a chat template, an EOS token that ends an answer, and a padding token.
        origin: `tokenizer` if it brought its own template, else `preftune`.
        head: what it writes between the prompt, generation prompt included, and the answer.
        tail: what it writes after the last answer.
        end: what we keep of the tail; EOS is its last token.
    """

    tokenizer: "PreTrainedTokenizerBase"
    origin: str
    head: str
    tail: str
    end: str

    def render(
        self,
        prompt: list[Message],
        chosen: Message,
        rejected: Message,
        options: Mapping[str, Any] | None = None,
    ) -> Texts:
        """Return the text of the prompt, generation prompt included, and of each answer.

        Args:
            prompt: its turns.
            chosen, rejected: an assistant's turn each.
            options: `tools`, and switches of the template.

        Raises:
            Unrenderable: if the template refuses the roles, changes the prompt with the answer, or
                leaves out what a turn holds beside its content.
        """
        options = options or {}
        if steering := self._steering & options.keys():
            raise Unrenderable(f"{min(steering)} is not a variable of the template")
        asked = render(self.tokenizer, prompt, {**options, "add_generation_prompt": True})
        answers = []
        for answer in (chosen, rejected):
            rest = rest_of(self.tokenizer, prompt, asked, answer, options)
            if not rest.endswith(self.tail):
                raise Unrenderable("it ends this answer in another way than others")
            answers.append(rest[: len(rest) - len(self.tail)] + self.end)
        return Texts(asked, *answers)

    def has_tokens(self, text: str) -> bool:
        """Say whether a text has tokens of a chat template in it, this tokenizer's or another's."""
        return TEMPLATE_TOKENS.search(text) is not None or self._special.search(text) is not None

    @cached_property
    def _steering(self) -> set[str]:
        """What steers the rendering instead of the template, and is not for rows to set."""
        parameters = inspect.signature(self.tokenizer.apply_chat_template).parameters
        return {*parameters, "messages"} - {"tools", "documents"}

    @cached_property
    def _special(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(specials(self.tokenizer)))))

    def tokenize(self, texts: list[Texts]) -> list[Tokens]:
        """Return the ids of prompts and answers.

        Prompt ids are those of the prompt alone, as in generation. An answer's are the rest of the
        whole text's ids; where a token would straddle the cut, its text is tokenised by itself.
        """
        prompts = self.ids([text.prompt for text in texts])
        chosen = self.ids([text.prompt + text.chosen for text in texts])
        rejected = self.ids([text.prompt + text.rejected for text in texts])
        tokens = []
        for text, prompt, good, bad in zip(texts, prompts, chosen, rejected, strict=True):
            good_ids, merged = self.after(prompt, good, text.chosen)
            bad_ids, merged_too = self.after(prompt, bad, text.rejected)
            tokens.append(Tokens(prompt, good_ids, bad_ids, merged + merged_too))
        return tokens

    def after(self, prompt: list[int], whole: list[int], answer: str) -> tuple[list[int], bool]:
        """Return the answer's ids, and whether they had to be taken apart from the prompt's."""
        if whole[: len(prompt)] == prompt:
            return whole[len(prompt) :], False
        return self.ids([answer])[0], True

    def ids(self, texts: list[str]) -> list[list[int]]:
        """Tokenise texts that already hold every special token they need."""
        if not texts:
            return []
        encoded = self.tokenizer(texts, add_special_tokens=False, verbose=False)
        return encoded["input_ids"]  # type: ignore[no-any-return]


def settle(
    tokenizer: "PreTrainedTokenizerBase",
    switches: Mapping[str, Any] | None = None,
    with_tools: bool = False,
) -> ChatTemplate:
    """Give `tokenizer` a template if it has none, and find out how its template ends an answer.

    The vocabulary never grows. A tokenizer without a padding token pads with EOS: padding is masked
    out of attention and loss wherever we use it, and a new token would need a new embedding. Where
    the template ends a turn with a special token of its own (`<|im_end|>`), that token becomes EOS,
    so that training, generation and whoever loads the tokenizer agree on when an answer is over.

    Args:
        tokenizer: is changed.
        switches: defaults for the template's variables, which become a part of it: whoever loads
            the tokenizer has them.
        with_tools: of several templates, take the one for tools.

    Raises:
        UserError: if the template cannot serve, or there is no EOS token.
    """
    origin = "tokenizer" if tokenizer.chat_template else "preftune"
    name = tokenizer.name_or_path
    if tokenizer.eos_token is None:
        raise UserError(
            f"The tokenizer {name!r} has no EOS token, so no answer could end: set `eos_token` in "
            "its tokenizer_config.json."
        )
    if origin == "preftune":
        tokenizer.chat_template = OURS.read_text(encoding="utf-8")
    else:
        # Of several named templates the one for plain chat, unless pairs offer tools.
        tokenizer.chat_template = tokenizer.get_chat_template(tools=[] if with_tools else None)
    tokenizer.chat_template = with_defaults(str(tokenizer.chat_template), switches or {})
    head, tail = ends_of(tokenizer)
    end = tail.rstrip() + tokenizer.eos_token
    # A template may write `eos_token`, which is another one once the end of a turn has become it.
    for _ in range(2):
        if (turn_end := first_special(tokenizer, tail)) is None:
            break
        end = tail[: tail.index(turn_end) + len(turn_end)]
        if turn_end == tokenizer.eos_token:
            break
        tokenizer.eos_token = turn_end
        head, tail = ends_of(tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return ChatTemplate(tokenizer, origin, head, tail, end)


def with_defaults(template: str, switches: Mapping[str, Any]) -> str:
    """Return a template in which variables that a caller leaves out have these values."""
    words = {"null": "none", "true": "true", "false": "false"}
    lines = []
    for name, value in switches.items():
        text = json.dumps(value, ensure_ascii=False)
        lines.append(
            f"{{%- if {name} is not defined %}}{{%- set {name} = {words.get(text, text)} %}}"
            "{%- endif %}"
        )
    # An expression, after which Jinja keeps a line break that the template begins with.
    return "".join(lines) + ("{{- '' }}" if lines else "") + template


def ends_of(tokenizer: "PreTrainedTokenizerBase") -> tuple[str, str]:
    """Return what the template writes before an answer, and after it.

    Raises:
        UserError: the template cannot serve.
    """
    prompt, answer = [{"role": "user", "content": "What is this?"}], "This is an answer"
    try:
        asked = render(tokenizer, prompt, {"add_generation_prompt": True})
        turn = {"role": "assistant", "content": answer}
        rest = rest_of(tokenizer, prompt, asked, turn)
        if answer not in rest:
            raise Unrenderable("it does not repeat the assistant's words")
        head, _, tail = rest.rpartition(answer)
        if head.strip() and asked == render(tokenizer, prompt):
            raise Unrenderable(
                f"it has no generation prompt: {head.strip()!r}, which begins an answer, would be "
                "a part of the answer"
            )
    except Unrenderable as error:
        raise UserError(
            f"The chat template of {tokenizer.name_or_path!r} cannot be used because {error}: "
            "training and generation would see different prompts; put a plain one into its "
            "chat_template.jinja."
        ) from error
    return head, tail


def specials(tokenizer: "PreTrainedTokenizerBase") -> set[str]:
    """Return the special tokens of a tokenizer, named ones and added ones."""
    added = tokenizer.added_tokens_decoder.values()
    tokens = [*tokenizer.all_special_tokens, *(t.content for t in added if t.special)]
    return {token for token in tokens if token}


def first_special(tokenizer: "PreTrainedTokenizerBase", text: str) -> str | None:
    """Return the first special token in a text; the longest of several that begin there."""
    present = [token for token in specials(tokenizer) if token in text]
    return min(present, key=lambda token: (text.index(token), -len(token)), default=None)


def rest_of(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: list[Message],
    asked: str,
    answer: Message,
    options: Mapping[str, Any] | None = None,
) -> str:
    """Render a conversation and return what follows `asked`, the rendered prompt.

    Raises:
        Unrenderable: if the rendered conversation does not begin with `asked`.
    """
    whole = render(tokenizer, [*prompt, answer], options)
    if not whole.startswith(asked):
        raise Unrenderable("it writes a prompt alone in another way than a prompt with its answer")
    return whole[len(asked) :]


def render(
    tokenizer: "PreTrainedTokenizerBase",
    conversation: list[Message],
    options: Mapping[str, Any] | None = None,
) -> str:
    """Return the text of a conversation.

    Raises:
        Unrenderable: if the template refuses it, or leaves out the tool calls of a turn.
    """
    try:
        text = tokenizer.apply_chat_template(conversation, **{**(options or {}), "tokenize": False})
    except (TemplateError, TypeError, KeyError) as error:  # what templates raise at odd messages
        raise Unrenderable(f"it refuses the conversation ({error})") from error
    for turn in conversation:
        for call in turn.get("tool_calls") or ():
            name = (call.get("function") or call).get("name")
            if name and name not in text:
                raise Unrenderable("it leaves out tool calls")
    return str(text)
