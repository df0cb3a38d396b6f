"""The commands of `onebase`, each imported when it is used.

Training and answering import torch and transformers, which takes seconds. They do so when the command
runs: help, shell completion, and lists of adapters or keys do not wait for it.
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
    """Where a command is, as `module:function` or `module:app` in this package, and its short help."""

    place: str
    help: str


ENTRIES = {
    "demo": Entry("demo:demo_command", "Train five tasks on one base and compare the answers."),
    "methods": Entry("methods:methods_command", "The methods: their options, papers, and limits."),
    "plan": Entry("plan:plan_command", "Estimate what a training needs, and whether it fits."),
    "train": Entry("train:train_command", "Train one task, or all of a tasks.yaml together."),
    "race": Entry("race:race_command", "Race many configurations on one task."),
    "recommend": Entry(
        "recommend:recommend_command", "Which method to train, from what was measured."
    ),
    "resume": Entry("train:resume_command", "Continue an interrupted run exactly."),
    "generate": Entry("answering:generate_command", "Answer a prompt, or a file of requests."),
    "classify": Entry("answering:classify_command", "Score every label of a task for a text."),
    "chat": Entry("answering:chat_command", "Talk to a task."),
    "serve": Entry(
        "serve:serve_command", "Serve every task over HTTP, in the shapes of OpenAI's API."
    ),
    "export": Entry(
        "export:export_command", "Write an adapter for PEFT, merged, or for llama.cpp."
    ),
    "doctor": Entry("doctor:doctor_command", "What this machine has, and what is missing."),
    "align": Entry("align:align_app", "Learn from preferences and rewards: PPO, DPO, KTO, GRPO."),
    "adapters": Entry("adapters:adapters_app", "Tasks and their versions."),
    "keys": Entry("keys:keys_app", "API keys of the server."),
    "model": Entry("models:model_app", "Base models."),
    "data": Entry("data:data_app", "Check data files."),
    "runs": Entry("runs:runs_app", "Past runs."),
}


class OnceCommand(TyperCommand):
    """A command that refuses a single-valued option given twice, of which the last would win."""

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
    """The commands by name, as typer expects them; a value is imported when it is read."""

    def __init__(self) -> None:
        self._imported: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._imported:
            module, _, attribute = ENTRIES[name].place.partition(":")
            entry = getattr(import_module(f"onebase.cli.{module}"), attribute)
            if isinstance(entry, typer.Typer):
                entry.rich_markup_mode = None  # as the group of all
                for command in entry.registered_commands:
                    assert command.callback
                    command.callback = with_options_of_groups(command.callback)
                    command.cls = OnceCommand
                self._imported[name] = typer.main.get_group(entry)
            else:
                single = typer.Typer(add_completion=False, rich_markup_mode=None)
                single.command(name, cls=OnceCommand)(with_options_of_groups(entry))
                self._imported[name] = typer.main.get_command(single)
            self._imported[name].name = name
        return self._imported[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._imported[name] = command

    def __delitem__(self, name: str) -> None:
        del self._imported[name]

    def __iter__(self) -> Iterator[str]:
        return iter(ENTRIES)

    def __len__(self) -> int:
        return len(ENTRIES)


class CommandGroup(TyperGroup):
    """The group of all commands. Its help reads ENTRIES and imports none of them."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "commands": None})
        self.commands = _Commands()

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command by name; None where there is none."""
        return self.commands[cmd_name] if cmd_name in ENTRIES else None

    def list_commands(self, ctx: Any) -> list[str]:
        """The names, in the order of the help."""
        return list(ENTRIES)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """The names that begin with `incomplete`; no command is imported for it."""
        self.commands = {
            name: TyperCommand(name, help=entry.help) for name, entry in ENTRIES.items()
        }
        return super().shell_complete(ctx, incomplete)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the names and their lines of help."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in ENTRIES.items()])
