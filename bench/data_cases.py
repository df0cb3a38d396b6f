"""What happens to each file of a folder: read in full, refused, warned about, or silently lost.

    python bench/data_cases.py FOLDER [--base BASE]

Each file goes through `onebase data check`. If that finds neither answers nor preferences, the file goes
through the readers of prompts, of requests and of answers to score. Every word of the file must then be in
what the model reads or learns, or be the name of a column, field or role; otherwise a row or the file must
be refused, or a column reported as not read. A file that loses a word without a message is SILENT. A file
that ends with an undocumented exit code is a CRASH. Either makes the exit code 1.
"""

import argparse
import contextlib
import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from onebase.align.prompts import load_prompts
from onebase.cli.app import main as command_line
from onebase.cli.request_file import read_answers, read_requests
from onebase.data.example import Example
from onebase.data.formats import load_dataset
from onebase.data.hub import READABLE
from onebase.data.preferences import load_preferences
from onebase.data.template import Template
from onebase.errors import DataError, OnebaseError
from onebase.model.fetch import DEFAULT_BASE, resolve
from onebase.model.tokenizer import read_tokenizer

KEY = re.compile(r'"([^"\\]*)"\s*:')
ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))")
# Words that are part of a file's structure, and values that are interpreted.
STRUCTURE = {
    *("user", "assistant", "system", "human", "gpt", "developer", "null", "true", "false", "nan"),
    *("text", "type", "sep", "observation", "function", "function_call", "tool"),
}


def check(arguments: list[str]) -> tuple[int, dict[str, Any], str]:
    """Run a command in this process; returns its exit code, its JSON object and its stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            command_line([*arguments, "--json"])
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
    try:
        report = json.loads(out.getvalue())
    except ValueError:
        report = {}
    return code, report, err.getvalue()


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))


def words_of(file: Path) -> set[str]:
    """All words of a text file; none if it is not UTF-8."""
    if file.suffix == ".parquet":
        return set()
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        return set()
    if file.suffix not in (".csv", ".tsv"):
        text = ESCAPE.sub(lambda match: chr(int(match[1], 16)) if match[1] else " ", text)
    return words(text)


def given(file: Path, template: Template) -> Iterator[str]:
    """What the model reads and learns from a file of answers or preferences."""
    examples: list[Example]
    try:
        examples = list(load_dataset(file).examples)
    except OnebaseError:
        rows = load_preferences(file).rows
        yield from (f"{row.rating} {row.rating:g}" for row in rows)
        examples = [row.example(at) for row in rows for at in range(len(row.answers))]
    yield from map(template.marked, examples)


def asked(file: Path, template: Template) -> Iterator[str]:
    """What the model reads from a file of prompts, and the rows that a reward function gets."""
    for prompt in load_prompts(file, template).prompts:
        yield template.prompt_text(prompt.turns) + str(prompt.row)


def requested(file: Path, template: Template) -> Iterator[str]:
    """What the model reads from a file of requests."""
    for task, prompt in read_requests(file, None):
        yield task + template.prompt_text(prompt)


def scored(file: Path, _: Template) -> Iterator[str]:
    """What a reward model reads from a file of answers to score."""
    for question, answer in read_answers(file):
        yield f"{question} {answer}"


READERS: dict[str, Callable[[Path, Template], Iterator[str]]] = {
    "prompts": asked,
    "requests": requested,
    "answers to score": scored,
}


def read(file: Path, template: Template, form: str) -> tuple[str, str]:
    """The verdict of a reader other than `data check`, and its message."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            seen = "".join(READERS[form](file, template))
    except DataError as refusal:
        return "refused", f"{refusal.message} {refusal.remedy}"
    names = " ".join(KEY.findall(file.read_text(encoding="utf-8", errors="replace")))
    return verdict(file, seen, said.getvalue(), names), said.getvalue()


def verdict(file: Path, seen: str, said: str, names: str) -> str:
    """What happened to a file that was not refused."""
    if "Not read" in said:
        return "warned"
    missing = words_of(file) - words(seen) - words(names) - STRUCTURE
    return f"SILENT: {sorted(missing)[:8]}" if missing else "read in full"


def outcome(file: Path, template: Template, base: str) -> tuple[str, str]:
    """What happened to a file, and the messages about it."""
    code, report, said = check(
        ["data", "check", str(file), "--base", base, "--max-tokens", "100000"]
    )
    if code not in (0, 2, 3) or "itself failed" in said:
        return "CRASH", f"exit {code}: {said}"
    if "error" in report:
        said = f"{report['error']['message']} {report['error']['remedy']}"
        for form in READERS:
            result, told = read(file, template, form)
            if result != "refused":
                return f"as {form}: {result}", told
        return "refused", said
    told = "; ".join(report["warnings"])
    if report["bad"]:
        rows = "; ".join(f"line {row['line']}: {row['reason']}" for row in report["bad"])
        return f"refused: {len(report['bad'])} of {report['rows']} rows", f"{rows}; {told}"
    names = " ".join([*report["fields"], *report["columns"].values(), *report.get("labels", {})])
    return verdict(file, "".join(given(file, template)), told, names), told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base", default=DEFAULT_BASE)
    arguments = parser.parse_args()
    template = Template(read_tokenizer(resolve(arguments.base)), max_tokens=100_000)
    failed = False
    print("| file | result | messages |\n|---|---|---|")
    for file in sorted(arguments.folder.iterdir()):
        if file.suffix.lower() in READABLE:
            result, messages = outcome(file, template, arguments.base)
            failed = failed or "SILENT" in result or "CRASH" in result
            text = " ".join(messages.split()).replace("|", "\\|")
            print(f"| `{file.name}` | {result} | {text[:300]} |")
    sys.exit(failed)


if __name__ == "__main__":
    main()
