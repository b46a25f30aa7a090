"""The one chat template of a search: settled once, saved with the tokenizer for all that follows.

A conversation is cut where the model begins to write. Before the cut is the template of the
prompt with its generation prompt, exactly what the model sees when it generates; after it, the rest
of the template of the whole conversation, up to the end of the assistant's turn.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import TemplateError

from search_spaces.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OURS = Path(__file__).with_name("chat_template.jinja")

Message = dict[str, str]


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
        tail: what the template writes after the last answer.
        end: what we keep of it; EOS is its last token.
    """

    tokenizer: "PreTrainedTokenizerBase"
    origin: str
    tail: str
    end: str

    def render(self, prompt: list[Message], chosen: str, rejected: str) -> Texts:
        """Return the text of the prompt, generation prompt included, and of each answer.

        Raises:
            Unrenderable: if the template refuses the roles or changes the prompt with the answer.
        """
        asked = render(self.tokenizer, prompt, add_generation_prompt=True)
        answers = []
        for answer in (chosen, rejected):
            rest = rest_of(self.tokenizer, prompt, asked, answer)
            if not rest.endswith(self.tail):
                raise Unrenderable("it ends this answer in another way than others")
            answers.append(rest[: len(rest) - len(self.tail)] + self.end)
        return Texts(asked, *answers)

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


def settle(tokenizer: "PreTrainedTokenizerBase") -> ChatTemplate:
    """Give `tokenizer` a template if it has none, and find out how its template ends an answer.

    The vocabulary never grows. A tokenizer without a padding token pads with EOS: padding is masked
    out of attention and loss wherever we use it, and a new token would need a new embedding. Where
    the template ends a turn with a special token of its own (`<|im_end|>`), that token becomes EOS,
    so that training, generation and whoever loads the tokenizer agree on when an answer is over.

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
        # Of several named templates the one for plain chat; others are for tools, which pairs
        # never call.
        tokenizer.chat_template = tokenizer.get_chat_template()
    prompt, answer = [{"role": "user", "content": "What is this?"}], "This is an answer"
    try:
        asked = render(tokenizer, prompt, add_generation_prompt=True)
        rest = rest_of(tokenizer, prompt, asked, answer)
        if answer not in rest:
            raise Unrenderable("it does not repeat the assistant's words")
    except Unrenderable as error:
        raise UserError(
            f"The chat template of {name!r} cannot be used because {error}: training and "
            "generation would see different prompts; put a plain one into its chat_template.jinja."
        ) from error
    tail = rest.rpartition(answer)[2]
    specials = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    present = [token for token in specials if token and token in tail]
    if present:
        turn_end = min(present, key=lambda token: (tail.index(token), -len(token)))
        end = tail[: tail.index(turn_end) + len(turn_end)]
        tokenizer.eos_token = turn_end
    else:
        end = tail.rstrip() + tokenizer.eos_token
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return ChatTemplate(tokenizer, origin, tail, end)


def rest_of(
    tokenizer: "PreTrainedTokenizerBase", prompt: list[Message], asked: str, answer: str
) -> str:
    """Render a conversation and return what follows `asked`, the rendered prompt.

    Raises:
        Unrenderable: if the rendered conversation does not begin with `asked`.
    """
    whole = render(tokenizer, [*prompt, {"role": "assistant", "content": answer}])
    if not whole.startswith(asked):
        raise Unrenderable("it writes a prompt alone in another way than a prompt with its answer")
    return whole[len(asked) :]


def render(
    tokenizer: "PreTrainedTokenizerBase", conversation: list[Message], **options: Any
) -> str:
    """Return the text of a conversation.

    Raises:
        Unrenderable: if the template refuses it.
    """
    try:
        return tokenizer.apply_chat_template(conversation, tokenize=False, **options)  # type: ignore[no-any-return]
    except (TemplateError, TypeError, KeyError) as error:  # what templates raise at odd messages
        raise Unrenderable(f"it refuses the conversation ({error})") from error
