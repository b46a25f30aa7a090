"""The chat page: the reference and the tuned model answer side by side."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import streamlit as st

from results.run.files import Version, version
from results.run.run import Run
from results.verdict_view import verdict_sentence
from search_spaces.errors import UserError
from serve.choice import Choice, literal
from serve.engine import Engine, Message, load

REFERENCE, TUNED = "Reference", "Tuned"
Content = tuple[tuple[str, Version], ...]  # file name and version


@dataclass
class Turn:
    """A user's message and each model's answer; filled while the answers stream."""

    message: str
    answers: dict[str, str] = field(default_factory=dict)  # title -> text
    notes: dict[str, str] = field(default_factory=dict)  # title -> what to know about it


@st.cache_resource(show_spinner="Loading the model ...", max_entries=4)
def _loaded(path: str, tokenizer: str | None, content: Content) -> Engine:
    engine = load(path, tokenizer)
    engine.content = content
    return engine


def _engine(path: str, tokenizer: str | None = None) -> Engine:
    """Load a model once, and again where other files have taken the place of its own.

    More trials may name another winner, whose weights then have the path of the last one's.
    """
    return _loaded(path, tokenizer, (*_content(path), *_content(tokenizer)))


def _content(model: str | None) -> Content:
    """The files of a model's folder with their versions; empty for a repository of the Hub."""
    folder = Path(model).expanduser() if model else None
    if folder is None or not folder.is_dir():
        return ()
    parts = (path for path in folder.iterdir() if path.suffix not in (".md", ".yaml"))
    return tuple((path.name, version(path)) for path in sorted(parts))


def page(choice: Choice) -> None:
    """Render the chat: what is compared, the conversation so far, and the box to write in."""
    st.title("Chat")
    try:
        engines = _engines(choice)
    except UserError as error:
        st.error(literal(error))
        return
    turns = _turns(list(engines.values()))
    settings = _settings(min(engine.positions for engine in engines.values()), turns)
    for turn in turns:
        _show(turn, list(engines))
    if message := st.chat_input(
        "Write to the models" if len(engines) > 1 else "Write to the model"
    ):
        turn = Turn(message)
        turns.append(turn)
        # A place is a text element to be filled: models' words are never markup.
        places = _show(turn, list(engines))
        for title, text in _stream(engines, turns, settings):
            places[title].text(text)
        st.rerun()


def _engines(choice: Choice) -> dict[str, Engine]:
    """The models to talk to, by title; says above the conversation what they are."""
    if choice.model:
        st.caption(f"Talking to {literal(choice.model)}.")
        return {"Model": _engine(choice.model)}
    if choice.run is None:
        raise UserError(choice.problem or "There is no run to chat with.")
    run: Run = choice.run
    prepared = run.reference_tokenizer()
    reference = _engine(run.reference_model(), str(prepared) if prepared else None)
    st.caption(literal(verdict_sentence(run)))
    if run.best is None:
        st.info("This run has no model of its own: you are talking to the reference alone.")
        return {REFERENCE: reference}
    winner = (run.verdict() or {}).get("winner")
    title = TUNED if winner is None else f"{TUNED}: trial {winner}"
    return {REFERENCE: reference, title: _engine(str(run.best))}


def _turns(engines: list[Engine]) -> list[Turn]:
    """This session's conversation; a new one whenever other models are opened."""
    models = [(engine.name, engine.content) for engine in engines]
    if st.session_state.get("models") != models:
        st.session_state["models"], st.session_state["turns"] = models, []
    turns: list[Turn] = st.session_state["turns"]
    return turns


def _settings(positions: int, turns: list[Turn]) -> dict[str, Any]:
    """The sampling controls and the button that clears the conversation."""
    longest = min(512, positions // 2)
    with st.sidebar:
        settings = {
            "temperature": st.slider("temperature", 0.0, 2.0, 0.7, 0.1),
            "top_p": st.slider("top_p", 0.05, 1.0, 1.0, 0.05),
            "top_k": st.slider("top_k", 0, 200, 0, 10, help="0: no limit"),
            "max_new_tokens": st.slider("max_new_tokens", 8, longest, min(128, longest), 8),
            "seed": st.number_input("seed", 0, 2**31 - 1, 0, help="Same seed, same answer"),
        }
        if st.button("Clear the conversation", disabled=not turns, width="stretch"):
            turns.clear()
            st.rerun()
    return settings


def _show(turn: Turn, titles: list[str]) -> dict[str, Any]:
    """Draw a turn; returns the text element of each answer."""
    with st.chat_message("user", avatar=":material/person:"):
        st.text(turn.message)
    places: dict[str, Any] = {}
    for title, column in zip(titles, st.columns(len(titles)), strict=True):
        with column.container(border=True):
            st.caption(literal(title))
            places[title] = st.empty()
            places[title].text(turn.answers.get(title, ""))
            if note := turn.notes.get(title):
                st.caption(literal(note))
    return places


def _stream(
    engines: dict[str, Engine], turns: list[Turn], settings: dict[str, Any]
) -> Iterator[tuple[str, str]]:
    """Let the models answer the last turn in alternation; yields (title, answer so far)."""
    turn = turns[-1]
    streams: dict[str, Iterator[str]] = {}
    for title, engine in engines.items():
        messages = _messages(turns, title)
        turn.answers[title] = ""
        try:
            dropped = engine.prompt(messages, settings["max_new_tokens"]).dropped
        except UserError as error:
            turn.notes[title] = str(error)
            continue
        if dropped:
            turn.notes[title] = f"The oldest {dropped} messages no longer fit and were left out."
        streams[title] = engine.stream(messages, **settings)
    while streams:
        for title in list(streams):
            piece = next(streams[title], None)
            if piece is None:
                del streams[title]
                if not turn.answers[title]:
                    turn.notes[title] = "The answer is empty."
                continue
            turn.answers[title] += piece
            yield title, turn.answers[title]


def _messages(turns: list[Turn], title: str) -> list[Message]:
    """The conversation as one model knows it: the user's messages and its own answers."""
    messages: list[Message] = []
    for turn in turns[:-1]:
        messages.append({"role": "user", "content": turn.message})
        messages.append({"role": "assistant", "content": turn.answers.get(title, "")})
    return [*messages, {"role": "user", "content": turns[-1].message}]
