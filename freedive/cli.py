"""The command line: a table of subcommands, whose modules are imported only when they are called."""

from __future__ import annotations

import errno
import re
import sys
from difflib import get_close_matches
from importlib import import_module
from io import TextIOWrapper
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from freedive.commands.version import version as show_version
from freedive.errors import UserError

COMMANDS = {
    "chat": ("freedive.commands.chat:chat", "Talk with a model."),
    "run": ("freedive.commands.run:run", "Answer one prompt; only the answer goes to standard output."),
    "replay": ("freedive.commands.replay:replay", "Answer a recorded request again: is the answer the same?"),
    "serve": ("freedive.commands.serve:serve", "Serve models over HTTP, with a chat page."),
    "keys": ("freedive.commands.keys:keys", "Create, list and revoke the keys that a server asks for."),
    "list": ("freedive.commands.models:list_models", "List the models of the catalogue and those on this machine."),
    "pull": ("freedive.commands.models:pull", "Fetch models into the cache."),
    "plan": ("freedive.commands.plan:plan", "Predict how models run on this machine, before they are downloaded."),
    "show": ("freedive.commands.models:show", "Show what is known of a model."),
    "rm": ("freedive.commands.models:rm", "Delete models from the cache."),
    "train": ("freedive.commands.train:train", "Train a model of your own, from raw text to chat."),
    "finetune": ("freedive.commands.finetune:finetune", "Fine-tune a model: adapters, or some of its weights."),
    "merge": ("freedive.commands.finetune:merge", "Write a model with what fine-tuning has trained so far."),
    "quantize": ("freedive.commands.quantize:quantize", "Write a model in a format that takes less room."),
    "bench": ("freedive.commands.bench:bench", "Measure how fast a model runs on this machine."),
    "doctor": ("freedive.commands.doctor:doctor", "Show what this machine has for freedive, and what it lacks."),
    "version": ("freedive.commands.version:version", "Show the version."),
}
"""The function and the help text of each subcommand."""

HELP: dict[str, Any] = {"help_option_names": ["-h", "--help"]}


class Commands(TyperGroup):
    """The group of the subcommands in :data:`COMMANDS`; it prints a UserError as one line and exits with status 1."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, name: str) -> Any:
        if name not in COMMANDS:
            return None
        place, about = COMMANDS[name]
        module, _, function = place.partition(":")
        command = typer.Typer(add_completion=False, rich_markup_mode=None)
        command.command(name, help=about, context_settings=HELP)(getattr(import_module(module), function))
        return typer.main.get_command(command)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in COMMANDS and not ctx.resilient_parsing and (near := get_close_matches(args[0], COMMANDS)):
            ctx.fail(f"No such command {args[0]!r}. Did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in COMMANDS.items()])

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = re.sub(r"^Input should be (.*?)(, unable to .*)?$", r"it must be \1", error.message)
            raise
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(1) from None
        except OSError as error:  # a folder without permission, a failing disk: print the system's message
            if error.errno == errno.EPIPE:
                raise
            print(f"error: {error.strerror or error}: {error.filename or 'freedive'}", file=sys.stderr)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=Commands,
    rich_markup_mode=None,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings=HELP,
)


def _version(wanted: bool) -> None:
    if wanted:
        show_version()
        raise typer.Exit


@app.callback()
def freedive(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Mixture-of-experts language models on the machine you already have."""


def main() -> None:
    """Runs the ``freedive`` command with UTF-8 streams in any locale; bytes that are not UTF-8 are replaced."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")
    app(prog_name="freedive")
