"""The commands of `onebase`, each imported when it is used.

torch and transformers take seconds to import. Only the commands that need them import them, and only
when they run, so that help, shell completion and lists stay fast.
"""

from dataclasses import dataclass
from functools import cache
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
    "methods": Entry("methods:methods_command", "List the methods, or describe one."),
    "plan": Entry("plan:plan_command", "Estimate the memory, time and disk of a training."),
    "train": Entry("train:train_command", "Train one task, or all tasks of a tasks.yaml together."),
    "compare": Entry("compare:compare_command", "Compare methods on your own data."),
    "race": Entry("race:race_command", "Train many configurations of a task; store the best."),
    "recommend": Entry("recommend:recommend_command", "Recommend a method from comparisons."),
    "resume": Entry("train:resume_command", "Continue an interrupted run."),
    "generate": Entry("answering:generate_command", "Answer a prompt, or a file of requests."),
    "classify": Entry("answering:classify_command", "Score every label of a task for a text."),
    "chat": Entry("answering:chat_command", "Chat with a task."),
    "serve": Entry(
        "serve:serve_command", "Serve every task over HTTP, with an OpenAI-compatible API."
    ),
    "export": Entry(
        "export:export_command", "Export an adapter for PEFT, transformers or llama.cpp."
    ),
    "doctor": Entry("doctor:doctor_command", "Describe this machine and report problems."),
    "align": Entry("align:align_app", "Learn from preferences and rewards: PPO, DPO, KTO, GRPO."),
    "adapters": Entry("adapters:adapters_app", "Manage tasks and their versions."),
    "keys": Entry("keys:keys_app", "Manage the API keys of the server."),
    "model": Entry("models:model_app", "Fetch and list base models."),
    "data": Entry("data:data_app", "Check data files."),
    "runs": Entry("runs:runs_app", "List and show past runs."),
}


class OnceCommand(TyperCommand):
    """A command that refuses a single-valued option given twice; Click would use the last value."""

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


@cache
def _imported(name: str) -> Any:
    """The command `name`, whose module is imported when it is first used."""
    module, _, attribute = ENTRIES[name].place.partition(":")
    entry = getattr(import_module(f"onebase.cli.{module}"), attribute)
    if isinstance(entry, typer.Typer):
        entry.rich_markup_mode = None  # as in the top-level group
        for subcommand in entry.registered_commands:
            assert subcommand.callback
            subcommand.callback = with_options_of_groups(subcommand.callback)
            subcommand.cls = OnceCommand
        command: Any = typer.main.get_group(entry)
    else:
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(name, cls=OnceCommand)(with_options_of_groups(entry))
        command = typer.main.get_command(single)
    command.name = name
    return command


class CommandGroup(TyperGroup):
    """The group of all commands. Its help and completion import none of them."""

    def __init__(self, **settings: Any) -> None:
        commands = {name: TyperCommand(name, help=entry.help) for name, entry in ENTRIES.items()}
        super().__init__(**{**settings, "commands": commands})

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command by name, or None."""
        return _imported(cmd_name) if cmd_name in ENTRIES else None

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Complete a name without importing a command."""
        listed = TyperGroup(commands=dict(self.commands), params=self.params)
        ctx.command = listed
        return listed.shell_complete(ctx, incomplete)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the names and their help."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in ENTRIES.items()])
