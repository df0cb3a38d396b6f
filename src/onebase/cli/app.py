"""The `onebase` command: its groups and commands, its exit codes, and how errors are printed."""

import os
import sys
import traceback
import warnings
from pathlib import Path

import typer
from typer.exceptions import TyperException

from onebase.adapters.workspace import Workspace
from onebase.cli.commands import CommandGroup
from onebase.cli.session import note, print_error, replace_unencodable
from onebase.errors import OnebaseError, UsageError
from onebase.language import say
from onebase.model.cache import results_root

app = typer.Typer(
    cls=CommandGroup,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="One base model, many tasks: train, compare and switch adapters of any method.",
)


@app.callback()
def welcome(context: typer.Context) -> None:
    """One base model, many tasks."""
    if context.invoked_subcommand is None:
        print(
            say(
                "onebase: one base model, many tasks.\n"
                "  onebase demo                                   five tasks on one base, start to finish\n"
                "  onebase data check FILE                        check a data file\n"
                "  onebase train --task T --data F --method lora  train a task\n"
                "  onebase generate --task T --prompt …           get an answer from it\n"
                "  onebase serve                                  serve every task over HTTP\n"
                "  onebase --help                                 every command",
                "onebase：一个基座模型，多个任务。\n"
                "  onebase demo                                   在一个基座上完整演示五个任务\n"
                "  onebase data check 文件                        检查数据文件\n"
                "  onebase train --task T --data F --method lora  训练一个任务\n"
                "  onebase generate --task T --prompt …           用任务回答\n"
                "  onebase serve                                  通过 HTTP 为所有任务提供服务\n"
                "  onebase --help                                 所有命令",
            )
        )


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with the documented code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # before its late import
    # Typer wraps the help of a completion at this width, and a shell would offer each line of it.
    if "_ONEBASE_COMPLETE" in os.environ:
        os.environ["TERMINAL_WIDTH"] = "1000"
    if "transformers" in sys.modules:
        sys.modules["transformers"].logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=UserWarning, module="peft")
    replace_unencodable()
    debug = "--debug" in arguments
    sys.exit(_run([item for item in arguments if item != "--debug"], debug=debug))


def _run(arguments: list[str], *, debug: bool) -> int:
    try:
        _require_text(arguments)
        code = app(arguments, prog_name="onebase", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        note(say("Interrupted.", "已中断。"))
        return 130
    except Exception as error:  # noqa: BLE001 - the outermost edge: no traceback reaches a user
        reported = _as_onebase_error(error, arguments)
        print_error(reported, as_json="--json" in arguments)
        if debug:
            traceback.print_exc()
        return reported.exit_code
    return code if isinstance(code, int) else 0


def _as_onebase_error(error: Exception, arguments: list[str]) -> OnebaseError:
    if isinstance(error, OnebaseError):
        return error
    if isinstance(error, TyperException):
        return UsageError(
            error.format_message(),  # names the option, as `message` does not
            say(
                "See onebase --help, or --help after the command.",
                "请查看 onebase --help，或在命令后加 --help。",
            ),
        )
    if isinstance(error, OSError):  # such as a full disk or a missing permission
        reason, file = error.strerror or error, error.filename or ""
        cause = say(f"{reason}: {file}", f"{reason}：{file}")
        return OnebaseError(cause, _folder_remedy(error.filename, arguments))
    return OnebaseError(
        say(
            f"onebase itself failed: {type(error).__name__}: {error}",
            f"onebase 自身出错：{type(error).__name__}：{error}",
        ),
        say(
            "Run the command again with --debug and report the output.",
            "请加 --debug 重新运行该命令，并反馈其输出。",
        ),
    )


def _require_text(arguments: list[str]) -> None:
    """Raise UsageError for an argument that is neither UTF-8 nor the path of an existing file."""
    for argument in arguments:
        try:
            argument.encode("utf-8")
        except UnicodeEncodeError as error:
            value = argument.partition("=")[2] if argument.startswith("--") else argument
            if os.path.lexists(value):  # the reader of the file reports such a name
                continue
            shown = argument.encode("utf-8", "replace").decode("utf-8")
            raise UsageError(
                say(f"The argument {shown!r} is not UTF-8.", f"参数 {shown!r} 不是 UTF-8 文本。"),
                say(
                    "Set the terminal to UTF-8, or put the text into a UTF-8 file.",
                    "请将终端编码设为 UTF-8，或把文本写入 UTF-8 文件。",
                ),
            ) from error


def _folder_remedy(file: object, arguments: list[str]) -> str:
    """The remedy for a file that can't be read or written, with the option for another folder."""
    check = say("Check the disk and the permissions", "请检查磁盘空间和权限")
    roots = {
        "--workspace / ONEBASE_WORKSPACE": Workspace(_value_of("--workspace", arguments)).root,
        "ONEBASE_CACHE": results_root(),
    }
    if isinstance(file, str):
        path = Path(file).absolute()
        for chosen_by, root in roots.items():
            if path.is_relative_to(root.absolute()):
                return check + say(
                    f", or choose another folder with {chosen_by}.",
                    f"，或用 {chosen_by} 指定其他目录。",
                )
    return check + say(".", "。")


def _value_of(option: str, arguments: list[str]) -> str | None:
    """The value of an option, as `--option value` or `--option=value`."""
    for index, argument in enumerate(arguments):
        name, separator, value = argument.partition("=")
        if name == option:
            return value if separator else next(iter(arguments[index + 1 :]), None)
    return None
