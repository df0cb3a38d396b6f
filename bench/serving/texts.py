"""Four kinds of text for evaluating a quantized base: prose, chats, code, and the demo's held-out rows."""

import inspect
import json
import textwrap
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

from onebase.data.formats import load_dataset
from onebase.data.template import Template
from onebase.training.job import read_jobs

SEGMENT = 256  # maximum tokens of one text
_MODULES: tuple[ModuleType, ...] = (textwrap, inspect, json)


def segments(tokenizer: Any, data: Path, tokens: int) -> dict[str, list[list[int]]]:
    """Texts of each kind as token ids, with at least `tokens` tokens in all."""
    kinds = {
        "prose": _prose(data),
        "chat": _chats(tokenizer, data),
        "code": _code(),
        "demo": _demo(tokenizer),
    }
    return {name: _cut(tokenizer, texts, tokens) for name, texts in kinds.items()}


def _cut(tokenizer: Any, texts: Iterator[str], tokens: int) -> list[list[int]]:
    cut_texts: list[list[int]] = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][:SEGMENT]
        if len(ids) > 1:
            cut_texts.append(ids)
        if sum(map(len, cut_texts)) >= tokens:
            return cut_texts
    raise SystemExit(f"Only {sum(map(len, cut_texts))} tokens of a kind; {tokens} are needed.")


def _prose(data: Path) -> Iterator[str]:
    """Restaurant descriptions (E2E) and film reviews, alternating, several rows at a time."""
    sources = [("e2e_dev.jsonl", "ref"), ("reviews_rated_movie.jsonl", "text")]
    rows = [
        [json.loads(line)[key] for line in (data / name).read_text(encoding="utf-8").splitlines()]
        for name, key in sources
    ]
    for at in range(0, min(map(len, rows)) - 6, 6):
        for source in rows:
            yield " ".join(source[at : at + 6])


def _chats(tokenizer: Any, data: Path) -> Iterator[str]:
    for row in json.loads((data / "alpaca_en.json").read_text(encoding="utf-8")):
        asked = f"{row['instruction']}\n{row['input']}".strip()
        turns = [{"role": "user", "content": asked}]
        turns += [{"role": "assistant", "content": row["output"]}]
        yield tokenizer.apply_chat_template(turns, tokenize=False)


def _code() -> Iterator[str]:
    """Functions of some modules of the standard library."""
    for module in _MODULES:
        for _, member in inspect.getmembers(module, inspect.isroutine):
            if inspect.isfunction(member) and member.__module__ == module.__name__:
                yield inspect.getsource(member)


def _demo(tokenizer: Any) -> Iterator[str]:
    """The held-out rows of every task in turn, as training and evaluation see them."""
    folder = Path(str(files("onebase.demo"))) / "en"
    jobs = read_jobs(folder / "tasks.yaml").jobs
    templates = [Template(tokenizer, instruction=job.instruction) for job in jobs]
    examples = [load_dataset(job.held_out).examples for job in jobs]
    for row in zip(*examples, strict=False):
        for template, example in zip(templates, row, strict=True):
            answer = tokenizer.decode(template.answer_ids(example.answer))
            yield template.prompt_text(example.turns[:-1]) + answer
