"""Good files, mutated by a seeded generator: their content is read, refused or reported as unread.

A case is a form of rows, changes to its rows, a kind of file, and changes to that file. Every text in
its rows is unique. Whatever the model neither reads nor learns must stand in a row that is refused, in
a file that is refused for what was changed, or under a column or field that is named as not read.
"""

import copy
import csv
import io
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from onebase.align.prompts import load_prompts
from onebase.cli.request_file import read_answers, read_requests
from onebase.data.check import check
from onebase.data.example import BadRow, Example
from onebase.data.formats import load_dataset
from onebase.data.json_rows import line_rows
from onebase.data.preference_check import check_preferences
from onebase.data.preferences import load_preferences
from onebase.data.template import Template
from onebase.errors import OnebaseError

Write = Callable[[str, object], Path]
Rows = list[dict[str, Any]]
CASES, ROWS = 600, 6
TWICE = "TWICE:"  # before a key that is written under its own name beside the first one

# Words that show which encoding a file is in.
WORDS = {
    "utf-8": "naïve ♥ 衣裙",
    "utf-16": "naïve ♥ 衣裙",
    "utf-32": "naïve ♥ 衣裙",
    "cp1252": "déjà vu, façade “größe”",
    "latin-1": "déjà vu, façade größe",
    "cp1251": "съешь же ещё этих мягких булок",
    "koi8-r": "съешь же ещё этих мягких булок",
    "gbk": "这件上衣的材质是牛仔布，颜色是白色",
    "gb18030": "这件上衣的材质是牛仔布，颜色是白色",
    "big5": "這件上衣的材質是牛仔布，顏色是白色",
    "shift_jis": "この上着の素材はデニムで、色は白です",
    "euc-jp": "この上着の素材はデニムで、色は白です",
    "euc-kr": "이 재킷의 소재는 데님이고 색상은 흰색입니다",
}
# A model that learned such text would learn nonsense.
UNSEEN = ["cp1252", "cp1251", "koi8-r", "gbk", "gb18030", "big5", "shift_jis", "euc-jp", "euc-kr"]


def turns(*texts: str, keys: tuple[str, str] = ("role", "content")) -> Rows:
    """A conversation in which the user begins."""
    names = ("user", "assistant") if keys[0] == "role" else ("human", "gpt")
    return [dict(zip(keys, (names[at % 2], text), strict=True)) for at, text in enumerate(texts)]


SHARED = ("from", "value")
Text = Callable[[str], str]
# What reads a form, and its row of texts that `t` makes unique.
FORMS: dict[str, tuple[str, Callable[[Text, int], dict[str, Any]]]] = {
    "alpaca": (
        "answers",
        lambda t, n: {"instruction": t("ask"), "input": t("in"), "output": t("say")},
    ),
    "alpaca with more": (
        "answers",
        lambda t, n: {
            "instruction": t("ask"),
            "output": t("say"),
            "system": t("system"),
            "history": [[t("ask0"), t("say0")]],
        },
    ),
    "adgen": ("answers", lambda t, n: {"content": t("ask"), "summary": t("say")}),
    "prompt-completion": ("answers", lambda t, n: {"prompt": t("ask"), "completion": t("say")}),
    "input-output": (
        "answers",
        lambda t, n: {"input": t("ask"), "output": t("say"), "context": t("context")},
    ),
    "question-answer": ("answers", lambda t, n: {"question": t("ask"), "answer": t("say")}),
    "classes": ("answers", lambda t, n: {"text": t("ask"), "label": t("class")}),
    "numbered classes": ("answers", lambda t, n: {"text": t("ask"), "label": 7 + n % 2}),
    "conversational": (
        "answers",
        lambda t, n: {"prompt": turns(t("ask")), "completion": turns("", t("say"))[1:]},
    ),
    "messages": (
        "answers",
        lambda t, n: {
            "messages": [
                {"role": "system", "content": t("system")},
                *turns(t("ask0"), t("say0"), t("ask"), t("say")),
            ]
        },
    ),
    "messages in parts": (
        "answers",
        lambda t, n: {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": t(x)} for x in "ab"]},
                {"role": "assistant", "content": t("say")},
            ]
        },
    ),
    "sharegpt": (
        "answers",
        lambda t, n: {
            "conversations": turns(t("ask"), t("say"), keys=SHARED),
            "system": t("system"),
        },
    ),
    "pairs": (
        "preferences",
        lambda t, n: {"prompt": t("ask"), "chosen": t("yes"), "rejected": t("no")},
    ),
    "pairs in Alpaca": (
        "preferences",
        lambda t, n: {
            "instruction": t("ask"),
            "input": t("in"),
            "chosen": t("yes"),
            "rejected": t("no"),
        },
    ),
    "pairs of chats": (
        "preferences",
        lambda t, n: {
            "chosen": turns(t("ask"), t("yes")),
            "rejected": turns(t("ask"), t("no")),
        },
    ),
    "pairs of answers": (
        "preferences",
        lambda t, n: {
            "prompt": turns(t("ask")),
            "chosen": turns("", t("yes"))[1:],
            "rejected": turns("", t("no"))[1:],
        },
    ),
    "pairs of turns": (
        "preferences",
        lambda t, n: {
            "conversations": turns(t("ask0"), t("say0"), t("ask"), keys=SHARED),
            "chosen": {"from": "gpt", "value": t("yes")},
            "rejected": {"from": "gpt", "value": t("no")},
        },
    ),
    "judged": (
        "preferences",
        lambda t, n: {"prompt": t("ask"), "completion": t("say"), "label": n % 2 == 0},
    ),
    "judged chats": (
        "preferences",
        lambda t, n: {"messages": turns(t("ask"), t("say")), "label": n % 2 == 0},
    ),
    "rated": (
        "preferences",
        lambda t, n: {"instruction": t("ask"), "input": t("in"), "output": t("say"), "score": n},
    ),
    "rated texts": ("preferences", lambda t, n: {"text": t("say"), "rating": n}),
    "prompts": ("prompts", lambda t, n: {"prompt": t("ask"), "answer": t("right")}),
    "prompts of chats": (
        "prompts",
        lambda t, n: {"messages": turns(t("ask0"), t("say0"), t("ask"))},
    ),
    "requests": (
        "requests",
        lambda t, n: {"task": t("task"), "input": t("ask"), "system": t("system")},
    ),
    "chat requests": (
        "requests",
        lambda t, n: {"messages": turns(t("ask0"), t("say0"), t("ask")), "task": t("task")},
    ),
    "answers to score": ("scores", lambda t, n: {"input": t("ask"), "output": t("say")}),
    "texts to score": ("scores", lambda t, n: {"text": t("say")}),
}
COLUMNS = [
    *("system", "history", "context", "input", "text_pair", "instruction", "tools", "prompt"),
    *("messages", "conversations", "text", "question", "response", "summary", "category", "name"),
    *("reasoning_content", "thinking", "images", "tool_calls", "kto_tag", "score", "weight"),
    *("loss", "margin", "chosen", "rejected", "Input", "output ", "Ответ", "a, b", "", "id"),
]
TURN_FIELDS = [
    *("name", "reasoning_content", "thinking", "tool_calls", "function_call", "images", "value"),
    *("from", "weight", "loss", "train", "refusal", "loss_mask", "tool_call_id", "Content", "id"),
]
# What may stand inside a text.
INSIDE = [
    *("\u2028", "\u2029", "\u0085", "\ufeff", "\u200b", "\u00a0", "\ufdd0", "\x0b", "\x0c", "\x1c"),
    *("\n", "\r\n", "\t", '"', '""', "\\", "\\n", ",", ";", "|", "'", "`", "{}", "{input}", "%s"),
    *(
        "<|im_end|>",
        "<|endoftext|>",
        "<s>",
        "{v:4}",
        "⟦",
        "\0",
        "\ud83d",
        "🙂",
        "e\u0301",
        "{{ x }}",
    ),
    " long" * 27_000,  # csv reads 131,072 characters by itself
]


@dataclass
class Case:
    """A file to be: its rows, how they are written, and the names of what was changed."""

    reader: str
    rows: Rows
    suffix: str = ".jsonl"
    encoding: str = "utf-8"
    end: str = "\n"
    changed: set[str] = field(default_factory=set)
    lines: list[tuple[int, int]] = field(default_factory=list)  # of each row, first and last
    headers: list[int] = field(default_factory=list)  # lines that hold the header once more
    notes: list[str] = field(default_factory=list)

    @property
    def is_flat(self) -> bool:
        """Whether a table could hold its rows."""
        return all(not isinstance(held, list | dict) for row in self.rows for held in row.values())


def unique(draw: random.Random, word: str) -> Text:
    """Makes of a stem a text that is in no other place."""
    return lambda stem: f"{stem}#{draw.randrange(10**9)} {word}"


def filled(row: dict[str, Any]) -> Rows:
    """The objects of a row that hold something; the row alone where none does."""
    return [item for item in objects(row) if item] or [{"": ""}]


def objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in a value, itself among them."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value:
        if isinstance(inner, dict | list):
            yield from objects(inner)


def some(draw: random.Random, case: Case) -> Rows:
    """One of the rows, or all of them."""
    return case.rows if draw.random() < 0.5 else [draw.choice(case.rows)]


def held(draw: random.Random, text: Text) -> Any:
    """What a new column or field may hold."""
    shapes: list[Callable[[], Any]] = [
        lambda: text("new"),
        lambda: text("new"),
        lambda: [text("new")],
        lambda: {"inner": text("new")},
        lambda: turns(text("new"), text("new")),
        lambda: [[text("new"), text("new")]],
        lambda: draw.choice([0, 1, 0.5, 3, True, False]),
        lambda: draw.choice(["0", "1", "false", "0.5"]),
        lambda: draw.choice([None, "", " ", [], {}, "[]"]),
    ]
    return draw.choice(shapes)()


def add_column(draw: random.Random, case: Case, text: Text) -> None:
    names = [name for name in COLUMNS if name not in case.rows[0]]
    name = draw.choice(names)
    for row in some(draw, case):
        row[name] = held(draw, text)
    case.changed |= {name, "column"}


def add_field(draw: random.Random, case: Case, text: Text) -> None:
    name = draw.choice(TURN_FIELDS)
    for row in some(draw, case):
        inner = [item for item in objects(row) if item is not row and name not in item]
        if inner:
            draw.choice(inner)[name] = held(draw, text)
    case.changed.add(name)


def double_key(draw: random.Random, case: Case, text: Text) -> None:
    for row in some(draw, case):
        target = draw.choice(filled(row))
        name = draw.choice(list(target))
        if not name.startswith(TWICE):
            target[TWICE + name] = draw.choice([text("second"), copy.deepcopy(target[name])])
            case.changed.add(name)


def replace_value(draw: random.Random, case: Case, text: Text) -> None:
    values: list[Any] = [None, "", "  ", 5, 1.5, True, [], {}, [text("odd")], {"odd": text("odd")}]
    for row in some(draw, case):
        target = draw.choice(filled(row))
        name = draw.choice(list(target))
        target[name] = draw.choice(values)
        case.changed.add(name.removeprefix(TWICE))


def remove_key(draw: random.Random, case: Case, _: Text) -> None:
    for row in some(draw, case):
        target = draw.choice(filled(row))
        name = draw.choice(list(target))
        del target[name]
        case.changed |= {name.removeprefix(TWICE), "has no rows", "is empty", "an empty object"}
        case.changed.add("no name for column")


def rename_column(draw: random.Random, case: Case, _: Text) -> None:
    for row in filter(None, some(draw, case)):
        name = draw.choice(list(row))
        other = draw.choice([name.upper(), f"{name} ", f"\ufeff{name}", f"{name}s", "note"])
        row[other] = row.pop(name)
        case.changed |= {name, other, other.strip(), "column"}


def join_forms(draw: random.Random, case: Case, text: Text) -> None:
    reader, make = draw.choice(list(FORMS.values()))
    if reader == case.reader:
        case.rows[draw.randrange(1, ROWS) :] = [make(text, n) for n in range(2)]
        case.changed |= {key for row in case.rows for key in row}


def write_inside(draw: random.Random, case: Case, text: Text) -> None:
    inside = draw.choice(INSIDE)
    for row in case.rows[:1] if len(inside) > 99 else some(draw, case):
        target = draw.choice(filled(row))
        name = draw.choice(list(target))
        if isinstance(target[name], str):
            target[name] = f"{text('in')}{inside}{text('side')}"
            case.changed |= {name.removeprefix(TWICE), "NUL"}


def write_numbers(draw: random.Random, case: Case, _: Text) -> None:
    for row in some(draw, case):
        for name, value in row.items():
            if isinstance(value, bool | int | float):
                row[name] = str(value).lower()


def shuffle_keys(draw: random.Random, case: Case, _: Text) -> None:
    for row in some(draw, case):
        for item in objects(copy.copy(row)):
            names = draw.sample(list(item), len(item))
            for name in names:
                item[name] = item.pop(name)


CHANGES = [
    *(add_column, add_field, double_key, replace_value, remove_key, rename_column, join_forms),
    *(write_inside, write_numbers, shuffle_keys),
]


def json_text(value: object, **how: Any) -> str:
    return json.dumps(value, **how).replace(f'"{TWICE}', '"')


def lines_of(draw: random.Random, case: Case) -> str:
    """The rows as JSON lines."""
    ascii_only = draw.random() < 0.3
    text = ""
    for row in case.rows:
        text += case.end * (draw.random() < 0.1)
        number = text.count("\n") + 1
        text += (
            draw.choice(["", "", " ", "\t"]) + json_text(row, ensure_ascii=ascii_only) + case.end
        )
        case.lines.append((number, number))
    return text if draw.random() < 0.7 else text.removesuffix(case.end)


def array_of(draw: random.Random, case: Case) -> str:
    """The rows as one JSON array."""
    indent = draw.choice([None, None, 1])
    text = "[" + draw.choice(["", case.end])
    for at, row in enumerate(case.rows):
        body = json_text(row, ensure_ascii=draw.random() < 0.3, indent=indent)
        first = text.count("\n") + 1
        text += body.replace("\n", case.end)
        case.lines.append((first, text.count("\n") + 1))
        text += "," * (at + 1 < len(case.rows)) + draw.choice(["", " ", case.end])
    return text + "]" + draw.choice(["", case.end])


def table_of(draw: random.Random, case: Case) -> str:
    """The rows as a table with a header."""
    names = list(dict.fromkeys(name for row in case.rows for name in row))
    delimiter = draw.choice("\t\t\t," if case.suffix == ".tsv" else ",,,;\t|")
    out = io.StringIO(newline="")
    quoting = draw.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    writer = csv.writer(out, delimiter=delimiter, lineterminator=case.end, quoting=quoting)
    blank_ends = draw.choice([0, 0, 0, 2])
    if draw.random() < 0.1:
        out.write(f"sep={delimiter}{case.end}")
    header = [name.removeprefix(TWICE) for name in names] + [""] * blank_ends
    writer.writerow(header)
    again = draw.randrange(len(case.rows)) if draw.random() < 0.15 else None
    for at, row in enumerate(case.rows):
        if draw.random() < 0.1:
            writer.writerow([""] * draw.choice([0, len(header)]))
        if again == at:  # another file was joined to it
            case.headers.append(physical_line(out.getvalue()))
            writer.writerow(draw.sample(header, len(header)) if draw.random() < 0.5 else header)
            case.changed.add("header")
        first = physical_line(out.getvalue())
        cells = [cell(row[name]) if name in row else "" for name in names] + [""] * blank_ends
        if draw.random() < 0.05:
            cells.append(f"extra#{draw.randrange(10**9)}")
            row["column without a name"] = cells[-1]
            case.changed.add("fields, but the header has")
        writer.writerow(cells)
        case.lines.append((first, physical_line(out.getvalue()) - 1))
    return out.getvalue()


def cell(value: object) -> str:
    """A value as a table holds it."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def physical_line(text: str) -> int:
    return len(re.findall(r"\r\n|\r|\n", text)) + 1


def parquet_of(case: Case) -> bytes:
    """The rows as a Parquet file; raises where they fit no types."""
    out = io.BytesIO()
    names = dict.fromkeys(name for row in case.rows for name in row)
    rows = [dict.fromkeys(names) | row for row in case.rows]
    parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    case.lines = [(n, n) for n in range(1, len(case.rows) + 1)]
    return out.getvalue()


def content_of(draw: random.Random, case: Case) -> bytes:
    """The file's bytes."""
    case.end = draw.choice(["\n", "\n", "\r\n"])
    has_twice = any(key.startswith(TWICE) for row in case.rows for x in objects(row) for key in x)
    if case.reader in ("answers", "preferences") and not has_twice and draw.random() < 0.1:
        try:
            content = parquet_of(case)
        except (pyarrow.ArrowException, UnicodeEncodeError, TypeError):
            pass
        else:
            case.suffix = ".parquet"
            return content
    if case.is_flat and draw.random() < 0.4:
        case.suffix = draw.choice([".csv", ".csv", ".tsv"])
        case.end = draw.choice([case.end, "\r"])
        text = table_of(draw, case)
    elif draw.random() < 0.3:
        case.suffix = draw.choice([".json", ".jsonl"])
        text = array_of(draw, case)
    else:
        case.suffix = draw.choice([".jsonl", ".jsonl", ".ndjson", ".json"])
        text = lines_of(draw, case)
    try:
        content = text.encode(case.encoding)
    except UnicodeEncodeError:
        case.encoding = "utf-8"
        content = text.encode("utf-8", "surrogatepass")
        case.changed |= {"UTF-8"}
    if case.encoding == "utf-8":
        marks = draw.choice([0, 0, 0, 1, 1, 2])
        case.changed |= {"byte order mark", "\\ufeff", "\ufeff"} if marks > 1 else set()
        content = b"\xef\xbb\xbf" * marks + content
    else:
        case.changed |= {"UTF-8", "encoding", "NUL"}
    return content


def case_of(seed: int) -> tuple[Case, bytes]:
    """The case of a seed, and its file."""
    draw = random.Random(seed)
    encoding = draw.choice([*UNSEEN, "utf-16", "utf-32"]) if draw.random() < 0.12 else "utf-8"
    text = unique(draw, WORDS[encoding])
    reader, make = list(FORMS.values())[seed % len(FORMS)]
    case = Case(reader, [make(text, n) for n in range(ROWS)], encoding=encoding)
    for number in range(draw.choice([0, 1, 1, 1, 2, 3])):
        change = CHANGES[seed // len(FORMS) % len(CHANGES)] if number == 0 else draw.choice(CHANGES)
        change(draw, case, text)
        case.notes.append(change.__name__)
    return case, content_of(draw, case)


@dataclass
class Outcome:
    """What the model gets of a file, and what is said of it."""

    seen: str = ""
    said: str = ""
    bad: Sequence[BadRow] = ()
    uses: dict[str, str] = field(default_factory=dict)
    refused: int = 0  # the exit code


def read(reader: str, path: Path, template: Template, said: Callable[[], str]) -> Outcome:
    """A file as its reader takes it. What it prints stands in `said`."""
    try:
        outcome = _read(reader, path, template)
    except OnebaseError as refusal:
        return Outcome(said=f"{refusal.message} {refusal.remedy}", refused=refusal.exit_code)
    outcome.said += said()
    return outcome


def tokens_text(template: Template, example: Example) -> str:
    """What the model reads and learns of an example."""
    text: str = template._tokenizer.decode(template.example(example).ids)
    return text


def _read(reader: str, path: Path, template: Template) -> Outcome:
    if reader == "answers":
        data = load_dataset(path)
        report = check(data, template)
        seen = "".join(tokens_text(template, example) for example in data.examples)
        return Outcome(seen, "\n".join(report.warnings), report.bad, report.fields)
    if reader == "preferences":
        judged = load_preferences(path)
        told = check_preferences(judged, template)
        seen = "".join(
            tokens_text(template, row.example(at))
            for row in judged.rows
            for at in range(len(row.answers))
        )
        return Outcome(seen, "\n".join(told.warnings), told.bad, told.fields)
    if reader == "prompts":
        found = load_prompts(path, template)
        # A reward function gets the whole row.
        seen = "".join(
            template._tokenizer.decode(prompt.ids)
            + "".join(str(value) for _, value in texts(prompt.row))
            for prompt in found.prompts
        )
        return Outcome(seen)
    if reader == "requests":
        asked = read_requests(path, None)
        decode = template._tokenizer.decode
        return Outcome(
            "".join(f"{task}{decode(template.prompt(prompt))}" for task, prompt in asked)
        )
    return Outcome("".join(f"{question}{answer}" for question, answer in read_answers(path)))


def texts(value: Any, place: str | None = None) -> Iterator[tuple[str, Any]]:
    """Every text and number in a value, with the name of its field: `messages[].weight`."""
    if isinstance(value, dict):
        for key, inner in value.items():
            name = key.removeprefix(TWICE)
            yield from texts(inner, name if place is None else f"{place}.{name}")
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner, f"{place}[]")
    elif value is not None and value != "" and not str(value).isspace():
        yield place or "", value


def is_known(place: str, value: Any, outcome: Outcome) -> bool:
    """Whether a text is read, or its field or one around it is named as not read, or a mark or number
    is read for a role."""
    around = [place[: at.start()] for at in re.finditer(r"[.\[]|$", place)]
    if any(repr(name) in outcome.said for name in around):
        return True
    if isinstance(value, str) and "#" in value:
        return value in outcome.seen
    if place.rpartition(".")[2] in ("role", "from", "type"):
        return True
    used = outcome.uses.get(place, "unread")
    return used not in ("unread", "refused") or str(value) in ("[]", "{}") or outcome.uses == {}


def named(said: str, names: set[str]) -> bool:
    """Whether a message names something of these."""
    return any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", said) for name in names)


def lost(case: Case, outcome: Outcome) -> list[str]:
    """What of a case is neither read nor refused nor named."""
    names = {*case.changed, *(key for row in case.rows for key in row)} - {""}
    found = [
        f"a bad row without a name: {row}" for row in outcome.bad if not named(str(row), names)
    ]
    if outcome.refused:
        assert outcome.refused in (2, 3), outcome
        in_place = any(re.search(rf":{first}\b", outcome.said) for first, _ in case.lines)
        known = in_place or named(outcome.said, names)
        return [] if known else [f"refused without a name: {outcome.said}"]
    bad_lines = [row.line for row in outcome.bad]
    if set(case.headers) - set(bad_lines):
        found.append(f"a header is taken for a row: {case.headers}")
    for row, (first, last) in zip(case.rows, case.lines, strict=True):
        if any(first <= line <= last for line in bad_lines):
            continue
        found += [
            f"{place}: {value!r}"
            for place, value in texts(row)
            if not is_known(place, value, outcome)
        ]
    return found


def damaged(draw: random.Random, content: bytes) -> bytes:
    """The bytes with a few of them changed, left out, put in or cut off."""
    changed = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 5])):
        at = draw.randrange(len(changed) + 1)
        match draw.randrange(5):
            case 0:
                changed[at : at + 1] = draw.randbytes(1)
            case 1:
                changed[at : at + 1] = draw.choice(list(b'",:;{}[]\\\n\r\t\0 |')).to_bytes()
            case 2:
                del changed[at : at + draw.choice([1, 2, 50])]
            case 3:
                changed[at:at] = draw.choice(
                    [b"\n", b'"', b"\xff\xfe", b"\xef\xbb\xbf", b"[" * 999]
                )
            case _:
                del changed[at + len(changed) * draw.choice([0, 0, 0, 1]) :]
    return bytes(changed)


@pytest.fixture(scope="module")
def template(chatml: Any) -> Template:
    return Template(chatml, max_tokens=1_000_000)


@pytest.fixture
def losses(
    write: Write, template: Template, capsys: pytest.CaptureFixture[str]
) -> Callable[[int], list[str]]:
    """What is lost of the case of a seed."""

    def run(seed: int) -> list[str]:
        case, content = case_of(seed)
        path = write(f"{seed}{case.suffix}", content)
        outcome = read(case.reader, path, template, lambda: capsys.readouterr().err)
        return [f"{path} {case.notes} {case.encoding}: {item}" for item in lost(case, outcome)]

    return run


# What would lose something: the place of a check in the code, and what stands there instead.
BREAKS: dict[str, tuple[tuple[str, ...], Callable[..., Any]]] = {
    "warnings": (("check.unread", "preference_check.unread"), lambda fields: []),
    "keys that stand twice": (("json_rows._Objects.__call__",), lambda self, pairs: dict(pairs)),
    "joined headers": (("table_rows._is_header",), lambda fields, names: False),
    "encodings": (("rows._bytes",), lambda file: file.read_bytes().decode("latin-1").encode()),
    "system and history": (("conversion.with_history",), lambda row, columns, turns: tuple(turns)),
    "the last row": (("rows.line_rows",), lambda file, text: [*line_rows(file, text)][:-1]),
}


@pytest.mark.parametrize("what", BREAKS)
def test_a_loss_is_seen(
    losses: Callable[[int], list[str]], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    places, broken = BREAKS[what]
    for place in places:
        monkeypatch.setattr(f"onebase.data.{place}", broken)
    assert any(losses(seed) for seed in range(CASES))


@pytest.mark.parametrize("part", range(0, CASES, 60))
def test_nothing_is_lost(losses: Callable[[int], list[str]], part: int) -> None:
    assert [item for seed in range(part, part + 60) for item in losses(seed)] == []


@pytest.mark.parametrize("part", range(0, CASES, 60))
def test_a_damaged_file_loses_nothing_in_silence(
    write: Write, template: Template, capsys: pytest.CaptureFixture[str], part: int
) -> None:
    for seed in range(part, part + 60):
        draw = random.Random(seed)
        reader, make = list(FORMS.values())[seed % len(FORMS)]
        case = Case(reader, [make(unique(draw, "x"), n) for n in range(ROWS)])
        content = damaged(draw, content_of(draw, case))
        path = write(f"{seed}{case.suffix}", content)
        outcome = read(reader, path, template, lambda: capsys.readouterr().err)
        assert outcome.refused in (0, 2, 3), (path, outcome)
        if outcome.refused or outcome.bad or "Not read" in outcome.said:
            continue
        if case.suffix == ".parquet":  # its statistics hold texts once more
            continue
        whole = [text for _, text in texts(case.rows) if str(text).encode() in content]
        gone = [text for text in whole if isinstance(text, str) and text not in outcome.seen]
        assert [text for text in gone if "#" in text] == [], (path, content)
