"""The one chat template of a search: settled once, saved with the tokenizer for all that follows.

A conversation is cut where the model begins to write. Before the cut stands the template of the
prompt with its generation prompt, exactly what the model sees when it generates; after it, the rest
of the template of the whole conversation, up to the end of the assistant's turn.
"""

from dataclasses import dataclass
from pathlib import Path

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from trainables.errors import UserError

OURS = Path(__file__).with_name("chat_template.jinja")

Message = dict[str, str]


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

    tokenizer: PreTrainedTokenizerBase
    origin: str
    tail: str
    end: str

    def render(self, prompt: list[Message], answer: str) -> tuple[str, str]:
        """Return the text of the prompt, generation prompt included, and the text of the answer.

        Raises:
            Unrenderable: if the template refuses the roles or changes the prompt with the answer.
        """
        asked, rest = split_text(self.tokenizer, prompt, answer)
        if not rest.endswith(self.tail):
            raise Unrenderable("it ends this answer in another way than others")
        return asked, rest[: len(rest) - len(self.tail)] + self.end

    def tokenize(self, texts: list[tuple[str, str]]) -> list[tuple[list[int], list[int], bool]]:
        """Return prompt ids, answer ids, and whether the two texts would have merged at the cut.

        Prompt ids are those of the prompt alone, as in generation. The answer's are the rest of the
        whole text's ids; where a token would straddle the cut, its text is tokenised by itself.
        """
        asked = self.ids([prompt for prompt, _ in texts])
        whole = self.ids([prompt + answer for prompt, answer in texts])
        found = []
        for (_, answer), prompt_ids, ids in zip(texts, asked, whole, strict=True):
            merged = ids[: len(prompt_ids)] != prompt_ids
            answer_ids = self.ids([answer])[0] if merged else ids[len(prompt_ids) :]
            found.append((prompt_ids, answer_ids, merged))
        return found

    def ids(self, texts: list[str]) -> list[list[int]]:
        """Tokenise texts that already hold every special token they need."""
        if not texts:
            return []
        encoded = self.tokenizer(texts, add_special_tokens=False, verbose=False)
        return encoded["input_ids"]  # type: ignore[no-any-return]


def settle(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
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
    question, answer = "What is this?", "This is an answer"
    try:
        _, rest = split_text(tokenizer, [{"role": "user", "content": question}], answer)
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


def split_text(
    tokenizer: PreTrainedTokenizerBase, prompt: list[Message], answer: str
) -> tuple[str, str]:
    """Render a conversation and cut it where the answer begins.

    Raises:
        Unrenderable: if the rendered prompt is not how the rendered conversation begins.
    """
    conversation = [*prompt, {"role": "assistant", "content": answer}]
    try:
        asked = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(conversation, tokenize=False)
    except (TemplateError, TypeError, KeyError) as error:  # what templates raise at odd messages
        raise Unrenderable(f"it refuses the conversation ({error})") from error
    if not whole.startswith(asked):
        raise Unrenderable("it writes a prompt alone in another way than a prompt with its answer")
    return asked, whole[len(asked) :]
