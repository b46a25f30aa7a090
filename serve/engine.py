"""Load a chat model once and stream its answers: plain Python, no Streamlit."""

import inspect
import os.path
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_spaces.errors import UserError

if TYPE_CHECKING:
    import torch

Message = dict[str, str]  # {"role": "user", "content": "..."}


@dataclass(frozen=True)
class Prompt:
    """A conversation as the model reads it."""

    ids: list[int]
    dropped: int  # oldest messages left out so that the rest fits


class Engine:
    """A model with its tokenizer; streams are independent of each other and may alternate."""

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.content: object = (
            None  # the versions of its files: other weights may get the same name
        )
        ends = model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        self._ends = {end for end in [*ends, tokenizer.eos_token_id] if end is not None}
        # What transformers itself asks before it generates; it has no public name for it.
        takes = inspect.signature(getattr(model, "forward", model)).parameters
        self._has_cache = "past_key_values" in takes and not getattr(model, "_is_stateful", False)

    @property
    def positions(self) -> int:
        """Tokens that prompt and answer have together."""
        return int(getattr(self.model.config, "max_position_embeddings", None) or 2048)

    def prompt(self, messages: list[Message], max_new_tokens: int) -> Prompt:
        """Render a conversation with the model's own chat template, and cut it to fit.

        A system message stays; the oldest of the others go first, so that an answer of
        `max_new_tokens` still has its positions.

        Raises:
            UserError: the last message alone does not fit.
        """
        head = [m for m in messages[:1] if m["role"] == "system"]
        turns = messages[len(head) :]
        room = self.positions - max_new_tokens
        for dropped in range(len(turns)):
            kept = turns[dropped:]
            # Templates expect that the user speaks first.
            if kept[0]["role"] != "user":
                continue
            ids = self.tokenizer.apply_chat_template(
                head + kept, add_generation_prompt=True, return_dict=False
            )
            if len(ids) <= room:
                return Prompt([int(token) for token in ids], dropped)
        raise UserError(
            f"The message and an answer of {max_new_tokens} tokens do not fit into this model's "
            f"{self.positions} positions; shorten the message or lower max_new_tokens."
        )

    def stream(
        self,
        messages: list[Message],
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        max_new_tokens: int = 128,
        seed: int = 0,
    ) -> Iterator[str]:
        """Sample an answer and yield its text piece by piece.

        Every step of the iterator is one forward pass, and random numbers come from a generator of
        its own: streams may alternate, the same seed gives the same answer, and one that is
        abandoned costs nothing more.

        Args:
            messages: the conversation, the user's message last.
            temperature: 0 takes the most probable token.
            top_p: sample from the smallest set with this probability; 1 is everything.
            top_k: sample from the k most probable tokens; 0 is everything.
            max_new_tokens: the answer ends there at the latest.
            seed: of the sampling.

        Raises:
            UserError: the last message does not fit.
        """
        import torch

        ids = self.prompt(messages, max_new_tokens).ids
        warp = _warpers(temperature, top_p, top_k)
        device = self.model.device
        generator = torch.Generator(device=device).manual_seed(seed)
        step = torch.tensor([ids], device=device)
        cache, shown = None, ""
        answer: list[int] = []
        for _ in range(max_new_tokens):
            # Not around the `yield`: the caller's code would run in inference mode as well.
            with torch.inference_mode():
                if self._has_cache:
                    output = self.model(input_ids=step, past_key_values=cache, use_cache=True)
                    cache = output.past_key_values
                else:
                    # Recurrent models keep their state in other ways, some of them in themselves,
                    # where two streams would disturb each other: these read all of it again.
                    whole = torch.tensor([[*ids, *answer]], device=device)
                    output = self.model(input_ids=whole, use_cache=False)
                step = _next_token(output.logits[:, -1].float(), step, temperature, warp, generator)
            token = int(step)
            if token in self._ends:
                break
            answer.append(token)
            text = self.tokenizer.decode(answer, skip_special_tokens=True).lstrip()
            # A replacement character at the end is a letter whose last bytes are yet to come.
            if len(text) > len(shown) and not text.endswith("\N{REPLACEMENT CHARACTER}"):
                yield text[len(shown) :]
                shown = text
        rest = self.tokenizer.decode(answer, skip_special_tokens=True).lstrip()[len(shown) :]
        if rest:
            yield rest


def load(path_or_repo: str, tokenizer: str | Path | None = None) -> Engine:
    """Load a model from a folder or the Hub, on CUDA where there is one.

    Args:
        path_or_repo: a folder or a Hub id; weights must be safetensors.
        tokenizer: where its tokenizer and chat template are; default: with the model.

    Raises:
        UserError: no such model, no safetensors, or no chat template.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    folder = Path(os.path.expanduser(path_or_repo))
    local = str(folder) if folder.is_dir() else path_or_repo
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise UserError(f"{folder} is not a model: it has no config.json.")
    if folder.is_dir() and not list(folder.glob("*.safetensors")):
        raise UserError(
            f"{folder} has no *.safetensors, and other formats can run code when they are loaded; "
            "save the model with `save_pretrained` first."
        )
    cuda = torch.cuda.is_available()
    # Of a model without safetensors transformers would ask a service to convert it, in public.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    disable_progress_bar()  # the page's terminal does not need one
    try:
        loaded = AutoTokenizer.from_pretrained(str(tokenizer or local), trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare `Exception` on a damaged file
        raise _unloadable("tokenizer of", path_or_repo, error) from error
    if not loaded.chat_template:
        raise UserError(
            f"{path_or_repo} has no chat template, so its prompt format is not known; choose a "
            "model that was trained to chat."
        )
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            local,
            use_safetensors=True,
            trust_remote_code=False,  # left out, the terminal would be asked
            # Half precision is slower than float32 on most CPUs.
            dtype="auto" if cuda else torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        raise _unloadable("model", path_or_repo, error) from error
    if info["missing_keys"]:
        # transformers would fill these in at random.
        raise UserError(
            f"{path_or_repo} has no weights for {len(info['missing_keys'])} parameters of a causal "
            f"language model (such as {min(info['missing_keys'])}); choose a model that was saved "
            "with its language-model head."
        )
    model.to("cuda" if cuda else "cpu").eval()
    return Engine(model, loaded, path_or_repo)


def _unloadable(what: str, model: str, error: Exception) -> UserError:
    if (refused := _of_the_hub(model, error)) is not None:
        return UserError(refused)
    reason = " ".join(str(error).split())[:300].rstrip(".")
    return UserError(
        f"The {what} {model} cannot be loaded ({reason}); restore it, or choose another model."
    )


def _of_the_hub(model: str, error: BaseException) -> str | None:
    """Say what the Hub answered, where that is behind an error of transformers."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    behind: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in behind:
        behind.append(following)
        following = following.__cause__ or following.__context__
    statuses = {getattr(getattr(one, "response", None), "status_code", None) for one in behind}
    if any(isinstance(one, GatedRepoError) for one in behind):
        return (
            f"The model {model} is gated: accept its terms on {constants.ENDPOINT}/{model}, then "
            "log in with `hf auth login`."
        )
    # Whoever is not logged in gets 401 for what is private and for what is not there alike.
    if 401 in statuses or any(isinstance(one, RepositoryNotFoundError) for one in behind):
        return (
            f"There is no model {model} on the Hub: check the spelling, or log in with `hf auth "
            "login` if it is private."
        )
    if any(isinstance(one, LocalEntryNotFoundError | OfflineModeIsEnabled) for one in behind):
        return (
            f"The model {model} is not complete in the cache, and the Hub at {constants.ENDPOINT} "
            "cannot be reached for it: check the network and HF_HUB_OFFLINE, or give a folder."
        )
    return None


def _warpers(temperature: float, top_p: float, top_k: int) -> Any:
    from transformers import (
        LogitsProcessorList,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    warpers = LogitsProcessorList()
    if temperature > 0 and temperature != 1:
        warpers.append(TemperatureLogitsWarper(float(temperature)))
    if top_k > 0:
        warpers.append(TopKLogitsWarper(int(top_k)))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(float(top_p)))
    return warpers


def _next_token(
    logits: "torch.Tensor",
    ids: "torch.Tensor",
    temperature: float,
    warp: Any,
    generator: "torch.Generator",
) -> "torch.Tensor":
    """Choose from `logits` (1, vocabulary) and return the token as (1, 1)."""
    import torch

    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    probabilities = warp(ids, logits).softmax(dim=-1)
    return torch.multinomial(probabilities, num_samples=1, generator=generator)
