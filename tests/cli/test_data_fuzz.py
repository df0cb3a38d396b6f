"""Damaged files through the commands that read them: the contract's exit codes, one JSON object, and a
cause with its remedy."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from onebase.engine.engine import Engine
from onebase.model.base import Base

CASES, MORE = 90, 1000  # MORE are run by `make test-slow`
FORMS = ("lines", "array", "alone")
U, A = {"role": "user", "content": "Où est ☂?"}, {"role": "assistant", "content": "Ici."}
ROWS: dict[str, list[dict[str, Any]]] = {
    "pairs": [{"input": f"q{n}", "output": f"réponse {n}"} for n in range(8)],
    "classes": [{"text": f"q{n}", "label": n % 2, "id": n} for n in range(8)],
    "chats": [{"messages": [U, A, U, {**A, "weight": n % 2}]} for n in range(8)],
    "shared": [
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": f"a{n}"}]}
        for n in range(8)
    ],
    "preferences": [{"prompt": f"q{n}", "chosen": "yes", "rejected": "no"} for n in range(8)],
    "judged": [{"prompt": [U], "completion": [A], "label": n % 2 == 0} for n in range(8)],
    "rated": [{"text": f"t{n}", "rating": n / 2} for n in range(8)],
    "requests": [{"task": "base", "input": f"q{n}"} for n in range(3)],
    "answers": [{"input": f"q{n}", "output": "a"} for n in range(3)],
}
COMMANDS = {
    "requests": ("generate", "--max-tokens", "1", "--file"),
    "answers": ("align", "score", "--task", "no", "--file"),
}
BYTES = [b"\xff", b"\0", b'"', b"\n", b"\r", b",", b"[", b"}", b"\\u", b"\xef\xbb\xbf", b"[" * 5000]
WORDS = [b"null", b"NaN", b"1e999", b"-", b"true", b'{"a": 1, "a": 2}', b'"\\ud83d"', b"9" * 5000]


def written(draw: random.Random, file: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows in a file of one of the kinds that hold them."""
    flat = all(not isinstance(value, list) for row in rows for value in row.values())
    file = file.with_suffix(draw.choice([".jsonl", ".json", ".parquet", *[".csv", ".tsv"] * flat]))
    comma = "\t" if file.suffix == ".tsv" else ","
    if file.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    elif file.suffix in (".csv", ".tsv"):
        lines = [comma.join(map(str, line)) for line in (rows[0], *(row.values() for row in rows))]
        file.write_text("\n".join(lines), encoding="utf-8")
    elif draw.random() < 0.5:
        file.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    else:
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        file.write_text("\n".join(lines), encoding="utf-8")
    return file


def damage(draw: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice([0, 1, 1, 2, 8])):
        at = draw.randrange(len(changed) + 1)
        match draw.randrange(6):
            case 0:
                changed[at : at + 1] = draw.randbytes(1)
            case 1:
                del changed[at : at + draw.choice([1, 9, 99])]
            case 2:
                changed[at:at] = draw.choice(BYTES)
            case 3:
                value = draw.choice([b'"q1"', b"true", b"false", b"1", b'"user"', b'"Ici."'])
                changed = changed.replace(value, draw.choice(WORDS))
            case 4:
                name = draw.choice([b"input", b"text", b"role", b"content", b"label", b"chosen"])
                changed = changed.replace(name, draw.choice([b"weight", b"tools", b"", b"images"]))
            case _:
                del changed[at:]
    return bytes(changed)


def nested(file: Path, rows: list[dict[str, Any]], form: str, depth: int, key: str) -> Path:
    """The rows in a JSON file, a value of the second one nested deep."""
    texts = [json.dumps(row, ensure_ascii=False) for row in rows]
    deep = '{"a":' * depth + "1" + "}" * depth if depth % 2 else "[" * depth + "]" * depth
    texts[1] = json.dumps({**rows[1], key: "@"}, ensure_ascii=False).replace('"@"', deep)
    file = file.with_suffix(".jsonl" if form == "lines" else ".json")
    content = {"lines": "\n".join(texts), "array": f"[{','.join(texts)}]", "alone": texts[1]}
    file.write_text(content[form], encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def loaded(base: str) -> Base:
    """The base, loaded once for all commands."""
    return Base.load(base)


@pytest.fixture
def run(
    onebase: Any, base: str, loaded: Base, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., int]:
    """Run the command of a seed on its file; returns the exit code."""
    monkeypatch.setattr(Base, "load", lambda *_, **__: loaded)
    monkeypatch.setattr("onebase.cli.data_report._tokenizer", lambda _: loaded.tokenizer)

    def one(seed: int, depth: int = 0) -> int:
        draw = random.Random(seed)
        kind = list(ROWS)[seed % len(ROWS)]
        file = desk / f"f{seed}"
        if depth:
            key = draw.choice([*ROWS[kind][0], "extra"])
            file = nested(file, ROWS[kind], FORMS[seed // len(ROWS)], depth, key)
        else:
            file = written(draw, file, ROWS[kind])
            file.write_bytes(damage(draw, file.read_bytes()))
        command = COMMANDS.get(kind) or (
            *("data", "check", "--held-out", draw.choice(["support.jsonl", file.name])),
            *("--as", draw.choice(["auto", "auto", "answers", "preferences"])),
        )
        form = draw.choice([("--json",), (), ("--lang", "zh")])
        result = onebase(*command, file.name, "--base", base, *form)
        assert result.code in (0, 2, 3), (seed, result)
        assert "itself failed" not in result.err, (seed, result.err)
        assert "自身出错" not in result.err, (seed, result.err)
        assert "Traceback" not in result.err, seed
        assert not form or form[0] != "--json" or isinstance(result.json, dict), seed
        if result.code and "bad" not in result.out and "坏" not in result.out:  # else a report
            cause, remedy = result.err.splitlines()[-2:]
            assert cause.startswith(("Error: ", "错误：")), (seed, result.err)
            assert remedy.startswith(("Remedy: ", "解决：")), (seed, result.err)
            assert len(cause) < 3000, (seed, len(cause))
        return int(result.code)

    return one


@pytest.fixture
def _nothing_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first answer of a process compiles its kernels, for half a minute."""
    monkeypatch.setattr(Engine, "generate", lambda *_: [])


@pytest.mark.usefixtures("_nothing_generated")
@pytest.mark.parametrize("part", range(0, CASES, 30))
def test_damaged_files(run: Callable[..., int], part: int) -> None:
    assert {run(seed) for seed in range(part, part + 30)} > {3}


@pytest.mark.usefixtures("_nothing_generated")
@pytest.mark.parametrize("form", range(len(FORMS)))
def test_files_nested_deep(run: Callable[..., int], form: int) -> None:
    """Deeper than the parser goes, which refuses them, and as deep as it goes but not what reads rows."""
    seeds = range(form * len(ROWS), (form + 1) * len(ROWS))
    assert [run(seed, 100_000) for seed in seeds] == [3] * len(ROWS)
    for depth in (301, 600, 901):
        for seed in seeds:
            run(seed, depth)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(CASES, MORE, 130))
def test_more_damaged_files(run: Callable[..., int], part: int) -> None:
    for seed in range(part, part + 130):
        run(seed)
