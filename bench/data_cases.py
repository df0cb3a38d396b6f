"""What becomes of every file of a folder: read in full, refused, warned about, or lost in silence.

    python bench/data_cases.py FOLDER [--base BASE]

Each file goes through `onebase data check` and, where that finds neither answers nor preferences, through
the readers of prompts, of requests and of answers to score. Every word of the file must then be in what
the model reads or learns, be the name of a column, field or role, or something must be said: a row or
the file is refused, or a column is named as not read. A file of which a word is missing, and nothing
said, is SILENT; one that ends outside the contract's exit codes is a CRASH. Both make the exit code 1.
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
# Words of a file's structure, and values that are read for what they mean.
STRUCTURE = {
    *("user", "assistant", "system", "human", "gpt", "developer", "null", "true", "false", "nan"),
    *("text", "type", "sep", "observation", "function", "function_call", "tool"),
}


def check(arguments: list[str]) -> tuple[int, dict[str, Any], str]:
    """A command in this process: its exit code, its JSON object and what it says."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            command_line([*arguments, "--json"])
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
    try:
        found = json.loads(out.getvalue())
    except ValueError:
        found = {}
    return code, found, err.getvalue()


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))


def words_of(file: Path) -> set[str]:
    """The words of a file of text, whatever its structure; none where it is in another encoding."""
    if file.suffix == ".parquet":
        return set()
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        return set()
    if file.suffix not in (".csv", ".tsv"):
        text = ESCAPE.sub(lambda found: chr(int(found[1], 16)) if found[1] else " ", text)
    return words(text)


def given(file: Path, template: Template) -> Iterator[str]:
    """What the model reads and learns of a file of answers or of preferences."""
    examples: list[Example]
    try:
        examples = list(load_dataset(file).examples)
    except OnebaseError:
        rows = load_preferences(file).rows
        yield from (f"{row.rating} {row.rating:g}" for row in rows)
        examples = [row.example(at) for row in rows for at in range(len(row.answers))]
    yield from map(template.marked, examples)


def asked(file: Path, template: Template) -> Iterator[str]:
    """What the model reads of prompts; a reward function gets their rows."""
    for prompt in load_prompts(file, template).prompts:
        yield template.prompt_text(prompt.asked) + str(prompt.row)


def requested(file: Path, template: Template) -> Iterator[str]:
    """What the model reads of requests."""
    for task, prompt in read_requests(file, None):
        yield task + template.prompt_text(prompt)


def scored(file: Path, _: Template) -> Iterator[str]:
    """What a reward model reads."""
    for question, answer in read_answers(file):
        yield f"{question} {answer}"


READERS: dict[str, Callable[[Path, Template], Iterator[str]]] = {
    "prompts": asked,
    "requests": requested,
    "answers to score": scored,
}


def read(file: Path, template: Template, form: str) -> tuple[str, str]:
    """The verdict of another reader than `data check`, and what it says."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            seen = "".join(READERS[form](file, template))
    except DataError as refusal:
        return "refused", f"{refusal.message} {refusal.remedy}"
    names = " ".join(KEY.findall(file.read_text(encoding="utf-8", errors="replace")))
    return verdict(file, seen, said.getvalue(), names), said.getvalue()


def verdict(file: Path, seen: str, said: str, names: str) -> str:
    """What became of a file that was not refused."""
    if "Not read" in said:
        return "warned"
    missing = words_of(file) - words(seen) - words(names) - STRUCTURE
    return f"SILENT: {sorted(missing)[:8]}" if missing else "read in full"


def outcome(file: Path, template: Template, base: str) -> tuple[str, str]:
    """What became of a file, and what was said of it."""
    code, found, said = check(
        ["data", "check", str(file), "--base", base, "--max-tokens", "100000"]
    )
    if code not in (0, 2, 3) or "itself failed" in said:
        return "CRASH", f"exit {code}: {said}"
    if "error" in found:
        said = f"{found['error']['message']} {found['error']['remedy']}"
        for form in READERS:
            result, told = read(file, template, form)
            if result != "refused":
                return f"as {form}: {result}", told
        return "refused", said
    told = "; ".join(found["warnings"])
    if found["bad"]:
        rows = "; ".join(f"line {row['line']}: {row['reason']}" for row in found["bad"])
        return f"refused: {len(found['bad'])} of {found['rows']} rows", f"{rows}; {told}"
    names = " ".join([*found["fields"], *found["columns"].values(), *found.get("labels", {})])
    return verdict(file, "".join(given(file, template)), told, names), told


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--base", default=DEFAULT_BASE)
    asked = arguments.parse_args()
    template = Template(read_tokenizer(resolve(asked.base)), max_tokens=100_000)
    failed = False
    print("| file | what became of it | what was said |\n|---|---|---|")
    for file in sorted(asked.folder.iterdir()):
        if file.suffix.lower() in READABLE:
            result, said = outcome(file, template, asked.base)
            failed = failed or "SILENT" in result or "CRASH" in result
            text = " ".join(said.split()).replace("|", "\\|")
            print(f"| `{file.name}` | {result} | {text[:300]} |")
    sys.exit(failed)


if __name__ == "__main__":
    main()
