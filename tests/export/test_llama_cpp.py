"""llama.cpp answers with the exported files as onebase does, token for token.

`make test-llama-cpp` runs this. llama.cpp comes as the package xllamacpp in an environment of its
own, whose Python ONEBASE_LLAMA_CPP names.

Both answer greedily in float32. Their products are summed in another order (and llama.cpp's GELU
is a table in float16), so where the two best logits are nearly the same, either may come first:
an answer may part from the other only there. An answer that ends early is no matter of rounding:
llama.cpp ends at the tokens that the file names and at any called <|endoftext|>, <|im_end|> or the
like, whatever the file says.
"""

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.engine.test_ends import base_ending, taught

from onebase.adapters.store import AdapterStore, StoredAdapter
from onebase.adapters.workspace import Workspace
from onebase.engine.engine import Engine
from onebase.engine.request import Request
from onebase.engine.sampling import Sampling
from onebase.export.export import export
from onebase.model.base import Base
from onebase.training.job import Job
from onebase.training.train import train

PYTHON = os.environ.get("ONEBASE_LLAMA_CPP")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None, reason="ONEBASE_LLAMA_CPP names no Python with xllamacpp"),
]
# How far apart the two best logits may be where two answers part, and the log-probabilities that the
# two programs give to one token. Measured: 2e-6 in the tiny bases, 2e-4 in SmolLM2, 1e-2 in Gemma, whose
# GELU is the table. With the query biases written as 0, Qwen 2 and the biased Llama part at 2e-3.
TINY, SMOLLM2, GELU_TABLE = 1e-5, 1e-3, 2e-2
TOP = 20  # tokens of a distribution that are compared
PROMPTS = (
    "Where is my parcel?",
    "My lamp arrived broken. What now?",
    "How do I return shoes that are too small?",
    "Do you ship to Norway?",
    "I was charged twice, 2024-11-03 and 2024-11-05.",
    "Can I change the address of order 10423?",
    "  When do you open on Sundays?  ",
    "Is the blue sofa, 3 seats, in stock?",
)
ANSWER = "Thank you for writing to Lantern & Co. We will look into it today."


@dataclass(frozen=True)
class Comparison:
    """How many of the answers are the same, and where the others part: (prompt, token, margin)."""

    same: int
    tokens: int
    apart: tuple[tuple[int, int, float], ...]


def ask_llama_cpp(model: Path, lora: Path | None, requests: list[dict[str, Any]]) -> list[Any]:
    """The server's answers to {"path", "body"} requests."""
    assert PYTHON is not None
    out = model.with_suffix(".json")
    asked = {
        "model": str(model),
        "lora": None if lora is None else str(lora),
        "requests": requests,
        "out": str(out),
    }
    script = Path(__file__).with_name("answer_with_llama_cpp.py")
    done = subprocess.run(
        [PYTHON, str(script)], input=json.dumps(asked), text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers: list[Any] = json.loads(out.read_text(encoding="utf-8"))
    return answers


def completion(prompt: Sequence[int], tokens: int, lora: float | None = None) -> dict[str, Any]:
    body: dict[str, Any] = {
        "prompt": list(prompt),
        "n_predict": tokens,
        "temperature": 0,
        "n_probs": TOP,
        "return_tokens": True,
        "cache_prompt": False,  # or a LoRA's cache would serve the base
    }
    if lora is not None:
        body["lora"] = [{"id": 0, "scale": lora}]
    return {"path": "/completion", "body": body}


def answered_by_onebase(
    engine: Engine, task: str | None, prompts: Sequence[Sequence[int]], tokens: int
) -> list[Request]:
    requests = []
    for ids in prompts:  # one at a time, as the server does
        requests.append(engine.add_request(task or "base", ids, Sampling(max_tokens=tokens)))
        while not engine.idle:
            engine.step()
    return requests


def compare(streams: Sequence[Request], answers: Sequence[Any], margin: float) -> Comparison:
    """Hold llama.cpp's tokens against onebase's; they may part only where onebase's two best
    logits are no further apart than `margin`, and end only at the same token.
    """
    apart = []
    tokens = 0
    for index, (stream, answer) in enumerate(zip(streams, answers, strict=True)):
        ours, theirs = stream.tokens, answer["tokens"]
        if stream.ended_by is not None:  # llama.cpp counts the end token among the others
            ours = [*ours, stream.ended_by]
        at = next((at for at, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
        if at is None:
            ends = (stream.ended_by is not None, answer["stop_type"] == "eos")
            assert (len(ours), ends[0]) == (len(theirs), ends[1]), (index, ours, theirs, ends)
        tokens += len(ours) if at is None else at
        if at is not None:
            apart.append((index, at, stream.margins[at]))
            assert stream.margins[at] <= margin, (index, at, ours, theirs, stream.margins[at])
    return Comparison(len(streams) - len(apart), tokens, tuple(apart))


def furthest(
    engine: Engine, task: str | None, streams: Sequence[Request], model: Path, lora: Path | None
) -> float:
    """The greatest distance between the log-probabilities of the engine and of llama.cpp, of the
    most likely tokens at every place of the answers `streams`.
    """
    probes, ours = [], []
    for stream in streams:
        start = len(stream.prompt)
        scored = engine.add_request(
            task or "base", stream.ids, Sampling(logprobs=TOP), score_from=start, score_only=True
        )
        while not engine.idle:
            engine.step()
        ours += scored.prompt_logprobs
        scale = None if lora is None else float(task is not None)
        places = range(start, len(stream.ids))
        probes += [completion(stream.ids[:at], 1, scale) for at in places]
    apart = []
    for token, answer in zip(ours, ask_llama_cpp(model, lora, probes), strict=True):
        # llama.cpp reports no probabilities beside half a character.
        for step in answer.get("completion_probabilities", []):
            theirs = {each["id"]: each["logprob"] for each in step["top_logprobs"]}
            apart += [abs(value - theirs[id_]) for id_, value in token.top if id_ in theirs]
    assert len(apart) > len(probes)
    return max(apart)


def show(
    capsys: pytest.CaptureFixture[str], what: str, found: Comparison, count: int, apart: str = ""
) -> None:
    with capsys.disabled():
        parted = "".join(f"; {p} parts at token {t}, margin {m:.1e}" for p, t, m in found.apart)
        print(
            f"\n  {what}: {found.same}/{count} answers the same, {found.tokens} tokens{parted}{apart}"
        )


def test_every_family(
    family: str,
    texts: tuple[str, ...],
    make_family: Callable[..., Base],
    make_lora: Any,
    keep: Callable[..., StoredAdapter],
    store: AdapterStore,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = make_family(family)
    stored = keep(base, make_lora(base, rank=4))
    export(store, "base", "gguf", tmp_path / "bare", dtype="f32", base=stored.base)
    export(store, "support", "gguf", tmp_path / "both", dtype="f32")
    prompts = [base.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    margin = GELU_TABLE if family.startswith("gemma") else TINY
    engine = Engine(base, [stored])
    ours = answered_by_onebase(engine, "support", prompts, 24)
    bare = answered_by_onebase(engine, None, prompts, 24)
    assert [stream.tokens for stream in ours] != [stream.tokens for stream in bare]

    pieces = [
        {"path": "/tokenize", "body": {"content": text, "parse_special": True}} for text in texts
    ]
    model, lora = tmp_path / "both" / "model.gguf", tmp_path / "both" / "adapter.gguf"
    bare_model = tmp_path / "bare" / "model.gguf"
    merged = ask_llama_cpp(model, None, [completion(ids, 24) for ids in prompts] + pieces)
    assert [answer["tokens"] for answer in merged[len(prompts) :]] == prompts
    alternating = [completion(ids, 24, lora=scale) for ids in prompts for scale in (1.0, 0.0)]
    added = ask_llama_cpp(bare_model, lora, alternating)
    for what, task, streams, answers, files in (
        ("merged", "support", ours, merged[: len(prompts)], (model, None)),
        ("base + LoRA", "support", ours, added[::2], (bare_model, lora)),
        ("base", None, bare, added[1::2], (bare_model, lora)),
    ):
        found = compare(streams, answers, margin)
        apart = furthest(engine, task, streams, *files)
        show(capsys, f"{family}, {what}", found, len(prompts), f"; {apart:.1e} apart")
        assert found.same >= len(prompts) - 1
        assert apart <= margin


def test_the_embedded_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SmolLM2 with a LoRA of a few steps, whose effect shows in every answer."""
    data = tmp_path / "support.jsonl"
    rows = [{"input": prompt, "output": ANSWER} for prompt in PROMPTS] * 2
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    base = Base.load("smollm2-135m", precision="fp32", device="cpu")
    workspace = Workspace(tmp_path / "ws")
    store = AdapterStore(workspace)
    job = Job("support", data, set={"rank": 4, "epochs": 2, "batch_size": 4})
    (stored,) = train([job], base=base, workspace=workspace)
    engine = Engine(base, [stored])
    template = engine.tasks["support"].template
    prompts = [template.prompt(prompt) for prompt in PROMPTS]
    ours = answered_by_onebase(engine, "support", prompts, 32)
    bare = answered_by_onebase(engine, None, prompts, 32)
    assert all(a.tokens[:8] != b.tokens[:8] for a, b in zip(ours, bare, strict=True))

    export(store, "base", "gguf", tmp_path / "bare", dtype="f32")
    export(store, "support", "gguf", tmp_path / "both", dtype="f32")
    pieces = [
        {
            "path": "/tokenize",
            "body": {"content": template.prompt_text(prompt), "parse_special": True},
        }
        for prompt in PROMPTS
    ]
    chat = [{"role": "user", "content": PROMPTS[0]}]
    laid_out = {"path": "/apply-template", "body": {"messages": chat}}
    model, lora = tmp_path / "both" / "model.gguf", tmp_path / "both" / "adapter.gguf"
    *merged, rendered = ask_llama_cpp(
        model, None, [completion(ids, 32) for ids in prompts] + pieces + [laid_out]
    )
    assert [answer["tokens"] for answer in merged[len(prompts) :]] == [list(p) for p in prompts]
    assert rendered["prompt"] == base.tokenizer.apply_chat_template(
        chat, tokenize=False, add_generation_prompt=True
    )
    alternating = [completion(ids, 32, lora=scale) for ids in prompts for scale in (1.0, 0.0)]
    added = ask_llama_cpp(tmp_path / "bare" / "model.gguf", lora, alternating)
    for what, streams, answers in (
        ("merged", ours, merged[: len(prompts)]),
        ("base + LoRA", ours, added[::2]),
        ("base", bare, added[1::2]),
    ):
        found = compare(streams, answers, SMOLLM2)
        show(capsys, f"smollm2-135m, {what}", found, len(prompts))


@pytest.mark.parametrize(
    ("ending", "eos", "named"),
    [
        ("<|im_end|>", "<pad>", 0),
        ("<|im_end|>", "<pad>", [0, 7]),
        ("<|im_end|>", None, None),
        ("", None, None),
    ],
    ids=["another of the turn", "a list", "the template's alone", "none"],
)
def test_answers_end_as_the_task_s(
    ending: str,
    eos: str | None,
    named: int | list[int] | None,
    make_base: Callable[..., Base],
    tmp_path: Path,
) -> None:
    base = base_ending(make_base(), ending, eos, named)
    folder = tmp_path / "base"
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    engine = taught(Base.load(str(folder)), tmp_path)
    store = AdapterStore(Workspace(tmp_path / "w"))
    export(store, "t", "gguf", tmp_path / "out", dtype="f32")
    prompt = engine.tasks["t"].template.prompt("where is 3?")
    (ours,) = answered_by_onebase(engine, "t", [prompt], 24)
    (theirs,) = ask_llama_cpp(tmp_path / "out" / "model.gguf", None, [completion(prompt, 24)])
    assert theirs["stop_type"] == ("eos" if ending else "limit")
    assert [id_ for id_ in theirs["tokens"] if id_ != 2] == list(ours.tokens)
