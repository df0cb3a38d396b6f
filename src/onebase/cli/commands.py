"""The commands of `onebase`, each imported when it is asked for.

Training and answering import torch and transformers, which takes seconds; listing adapters or keys
should not wait for them.
"""

from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from onebase.cli.options import with_options_of_groups
from onebase.errors import UsageError
from onebase.language import say


@dataclass(frozen=True)
class Entry:
    """Where a command is, as `module:function` or `module:app` in this package, and its line of help."""

    place: str
    help: str


ENTRIES = {
    "demo": Entry("demo:demo_command", "Five tasks on one base, from their data to answers."),
    "methods": Entry("methods:methods_command", "The methods: their options, papers, and limits."),
    "plan": Entry("plan:plan_command", "Tell what a training would take, and whether it fits."),
    "train": Entry("train:train_command", "Train one task, or all of a tasks.yaml together."),
    "race": Entry("race:race_command", "Race many configurations at one task."),
    "resume": Entry("train:resume_command", "Continue an interrupted run exactly."),
    "generate": Entry("answering:generate_command", "Answer a prompt, or a file of requests."),
    "classify": Entry("answering:classify_command", "Score every label of a task for a text."),
    "chat": Entry("answering:chat_command", "Talk to a task."),
    "serve": Entry("serve:serve_command", "Answer for every task over HTTP, as OpenAI's API does."),
    "export": Entry(
        "export:export_command", "Write an adapter for PEFT, merged, or for llama.cpp."
    ),
    "doctor": Entry("doctor:doctor_command", "Device, memory, libraries, bases: what is missing."),
    "align": Entry("align:align_app", "Learn from preferences and rewards: PPO, DPO, KTO, GRPO."),
    "adapters": Entry("adapters:adapters_app", "The tasks and their versions."),
    "keys": Entry("keys:keys_app", "API keys of the server."),
    "model": Entry("models:model_app", "Base models."),
    "data": Entry("data:data_app", "Data files."),
    "runs": Entry("runs:runs_app", "Past runs."),
}


class OnceCommand(TyperCommand):
    """A command that refuses an option of one value which is given twice: the last would win."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments. Raises UsageError."""
        _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        for option in given:
            single = not (getattr(option, "multiple", False) or getattr(option, "is_flag", False))
            if single and given.count(option) > 1:
                name = option.opts[0]
                raise UsageError(
                    say(f"{name} is given twice.", f"{name} 给出了两次。"),
                    say(f"Give {name} once.", f"{name} 只能给出一次。"),
                )
        return super().parse_args(ctx, args)


class _Commands(MutableMapping[str, Any]):
    """The commands by name, as typer wants them; a value is imported when it is read."""

    def __init__(self) -> None:
        self._read: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._read:
            module, _, attribute = ENTRIES[name].place.partition(":")
            entry = getattr(import_module(f"onebase.cli.{module}"), attribute)
            if isinstance(entry, typer.Typer):
                entry.rich_markup_mode = None  # as the group of all
                for command in entry.registered_commands:
                    assert command.callback
                    command.callback = with_options_of_groups(command.callback)
                    command.cls = OnceCommand
                self._read[name] = typer.main.get_group(entry)
            else:
                single = typer.Typer(add_completion=False, rich_markup_mode=None)
                single.command(name, cls=OnceCommand)(with_options_of_groups(entry))
                self._read[name] = typer.main.get_command(single)
            self._read[name].name = name
        return self._read[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._read[name] = command

    def __delitem__(self, name: str) -> None:
        del self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(ENTRIES)

    def __len__(self) -> int:
        return len(ENTRIES)


class CommandGroup(TyperGroup):
    """The group of all commands. Its help reads ENTRIES alone and imports none of them."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "commands": None})
        self.commands = _Commands()

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command by name; None where there is none."""
        return self.commands[cmd_name] if cmd_name in ENTRIES else None

    def list_commands(self, ctx: Any) -> list[str]:
        """The names, in the order of the help."""
        return list(ENTRIES)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the names and their lines of help."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in ENTRIES.items()])
