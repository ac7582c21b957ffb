"""``freedive chat [MODEL]``: a conversation, on a terminal or through a pipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import freedive
from freedive.commands.flags import REFERENCE, Values, field_type, settings
from freedive.commands.printing import print_answer, print_paging
from freedive.commands.run import UNPRINTED
from freedive.config import EngineConfig, load
from freedive.engine.sampling import Sampling
from freedive.errors import UserError
from freedive.hub.cache import home, keep_private
from freedive.text.dialects.dialect import Event
from freedive.text.dialects.parser import joined

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import History

    from freedive.api import LanguageModel


class Conversation:
    """The messages of a conversation, and the sampling settings of the next answer."""

    def __init__(self, model: LanguageModel, system: str, sampling: Values) -> None:
        self.model = model
        self.sampling = sampling
        self.messages: list[dict[str, str]] = []
        self.system(system)

    def ask(self, text: str) -> None:
        """Prints the answer as it arrives. An interrupted answer is kept if it has text besides thoughts."""
        said: list[Event] = []
        self.messages.append({"role": "user", "content": text})
        try:
            print_answer(self._answer(said))
        finally:
            print(flush=True)
            answer = joined(said)
            if answer.content:
                reasoning = {"reasoning_content": answer.reasoning} if answer.reasoning else {}
                self.messages.append({"role": "assistant", **reasoning, "content": answer.content})
            else:
                self.messages.pop()

    def _answer(self, said: list[Event]) -> Iterator[Event]:
        for event in self.model.chat(self.messages, **self.sampling).events():
            said.append(event)  # before it is printed, so that all text that was seen is kept
            yield event

    def help(self, _: str) -> None:
        """this list"""
        for name, function in COMMANDS.items():
            say(f"  {name.ljust(8)} {function.__doc__}")
        say("  Ctrl-C stops an answer, Ctrl-D ends the conversation")

    def clear(self, _: str) -> None:
        """forget what was said"""
        self.messages = [message for message in self.messages if message["role"] == "system"]

    def system(self, text: str) -> None:
        """TEXT: instructions that precede the conversation; without TEXT, none"""
        self.messages = [message for message in self.messages if message["role"] != "system"]
        if text:
            self.messages.insert(0, {"role": "system", "content": text})

    def save(self, path: str) -> None:
        """FILE: write the conversation as JSON messages"""
        try:
            Path(path).expanduser().write_text(json.dumps(self.messages, indent=2, ensure_ascii=False) + "\n", "utf-8")
        except OSError as error:
            raise UserError(
                f"{path or 'A nameless file'} cannot be written: {error.strerror}", "Write /save FILE"
            ) from None
        say(f"saved to {path}")

    def set(self, text: str) -> None:
        """NAME VALUE: change how answers are sampled, such as: /set temperature 0.5"""
        name, _, value = text.partition(" ")
        kind = field_type(Sampling, name) if name in Sampling.__dataclass_fields__ else None
        if kind not in (int, float):
            raise UserError(f"{name!r} cannot be set", "Try temperature, top_k, top_p, min_p, seed or max_tokens")
        try:
            changed = self.sampling | {name: kind(value)}
        except ValueError:
            raise UserError(f"{value!r} is not a number", f"Write /set {name} NUMBER") from None
        Sampling(**changed)
        self.sampling = changed


COMMANDS = {
    "/help": Conversation.help,
    "/clear": Conversation.clear,
    "/system": Conversation.system,
    "/save": Conversation.save,
    "/set": Conversation.set,
}


@settings(sampling=Sampling, engine=EngineConfig, leave_out=UNPRINTED)
def chat(
    model: Annotated[str, typer.Argument(metavar="[MODEL]", help=f"{REFERENCE} (default smollm2)")] = "smollm2",
    system: Annotated[str, typer.Option(help="Instructions that precede the conversation.")] = "",
    *,
    sampling: Values,
    engine: Values,
) -> None:
    Sampling(**sampling)  # raises UserError before the model is loaded
    config = load(EngineConfig, engine)
    loaded = freedive.load(model, **asdict(config))
    print_paging(loaded)
    try:
        conversation = Conversation(loaded, system, sampling)
        if sys.stdin.isatty():
            _talk(conversation)
        else:
            for line in filter(None, map(str.strip, sys.stdin)):
                conversation.ask(line)
    finally:
        loaded.close()


def _talk(conversation: Conversation) -> None:
    """Reads messages until Ctrl-D; prompts go to standard error, so that standard output holds the answers alone."""
    say("Write a message, or /help. Ctrl-D ends the conversation.")
    session = _prompt_session()
    while True:
        try:
            line = session.prompt("> ").strip()
        except KeyboardInterrupt:  # drops the line that was being typed
            continue
        except EOFError:
            return
        try:
            _run_command(conversation, line)
        except UserError as error:
            say(f"error: {error}")
        except KeyboardInterrupt:
            say("(stopped)")


def _run_command(conversation: Conversation, line: str) -> None:
    name, _, argument = line.partition(" ")
    if name in COMMANDS:
        COMMANDS[name](conversation, argument.strip())
    elif name.startswith("/"):
        raise UserError(f"There is no command {name}", "See /help")
    elif line:
        conversation.ask(line)


def _prompt_session() -> PromptSession[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.output import create_output

    return PromptSession(history=_history(), output=create_output(sys.stderr))


def _history() -> History:
    """Returns the history of typed messages in a file that only this user can read, or in memory if that fails."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    path = home() / "history"
    try:
        keep_private(path)
    except UserError:
        return InMemoryHistory()
    return FileHistory(str(path))


def say(line: str) -> None:
    """Prints a message to standard error."""
    print(line, file=sys.stderr, flush=True)
