"""A mixed batch: isolation, the cache, drawing, stopping."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.engine.conftest import answered, request_of

from onebase.adapters.methods import build_adapter
from onebase.data.template import Template
from onebase.engine.engine import Engine
from onebase.engine.forward import run_pack
from onebase.engine.pack import Pack
from onebase.engine.request import Request
from onebase.engine.sampling import Sampling
from onebase.errors import UsageError
from onebase.model.base import Base

METHODS = ["lora", "prompt-tuning", "p-tuning", "p-tuning-v2"]
WORDS = ["hello", "the parcel", "is on its way", "today", "how are you", "where is it?"]


@pytest.fixture
def engine(architecture: str, make_base: Callable[..., Base]) -> Engine:
    base = make_base(architecture)
    engine = Engine(base, slots=24)
    for seed in range(8):
        method = METHODS[seed % 4]
        adapter = build_adapter(base, method, {}, init_text=WORDS[seed % 6], seed=seed)
        torch.manual_seed(seed)
        for parameter in adapter.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        template = Template(base.tokenizer, instruction=f"Task {seed}.")
        engine.tasks.load(f"t{seed}", adapter, template)
    return engine


def mixed_requests() -> list[tuple[str, str]]:
    names = [f"t{seed}" for seed in range(8)]
    return [(names[i % 8], " ".join(WORDS[: 1 + i % 6]) + f" {i}") for i in range(60)] + [
        ("base", f"{word} again") for word in WORDS[:4]
    ]


def test_the_cache_gives_what_reading_everything_anew_gives(engine: Engine) -> None:
    for name, prompt in mixed_requests()[:8]:
        task = engine.tasks[name]
        ids = task.template.prompt(prompt)
        answer: list[int] = []
        for _ in range(12):
            pack = Pack({name: task.contribution for name, task in engine.tasks.items()})
            pack.add(name, ids + answer)
            with torch.no_grad():
                logits = run_pack(engine.base, pack, torch.tensor([len(pack.ids) - 1]))[0]
            token = int(logits.argmax())
            if token == engine.base.tokenizer.eos_token_id:
                break
            answer.append(token)
        assert alone(engine, (name, prompt), Sampling(max_tokens=12)).tokens == answer


def test_seeded_draws_do_not_depend_on_the_batch(engine: Engine) -> None:
    sampling = Sampling(max_tokens=8, temperature=1.0, top_p=0.9, top_k=50, seed=7)
    request = ("t1", "hello today")
    alone = engine.generate([request], sampling)[0].text
    assert engine.generate([request, *mixed_requests()[:10]], sampling)[0].text == alone
    other = Sampling(max_tokens=8, temperature=1.0, seed=8)
    assert engine.generate([request], other)[0].text != alone


def test_limits_and_stops(engine: Engine) -> None:
    whole = engine.generate([("t0", "hello")], Sampling(max_tokens=20))[0]
    short = engine.generate([("t0", "hello")], Sampling(max_tokens=1))[0]
    assert short.finish_reason == "length"
    assert short.tokens == 1
    stop = whole.text[3:5]
    cut = engine.generate([("t0", "hello")], Sampling(max_tokens=20, stop=(stop,)))[0]
    assert cut.finish_reason == "stop"
    assert cut.text == whole.text[: whole.text.index(stop)].rstrip()


def test_compiled_virtual_tokens_answer_as_the_tokens_themselves(
    architecture: str, make_base: Callable[..., Base]
) -> None:
    base = make_base(architecture)
    adapter = build_adapter(base, "prompt-tuning", {}, init_text="hello", seed=0)
    engine = Engine(base)
    engine.tasks.load("t", adapter, Template(base.tokenizer))
    ids = list(range(20, 34))
    logits = []
    for contribution in (adapter.contribution(), engine.tasks["t"].contribution):
        pack = Pack({"t": contribution})
        node = pack.nodes[pack.add("t", ids)]
        with torch.no_grad():
            rows = torch.arange(node.start, node.start + node.length)
            logits.append(run_pack(base, pack, rows))
    torch.testing.assert_close(logits[0], logits[1], atol=1e-5, rtol=0)


def test_labels_are_scored_as_the_plain_model_scores_them(
    make_base: Callable[..., Base], plain_model: Callable[..., torch.nn.Module]
) -> None:
    base = make_base()
    scores = Engine(base).classify("base", ["hello you"], ["parcel", "way", "today"])[0]
    model = plain_model("llama")
    template = Template(base.tokenizer)
    for score in scores:
        prompt, answer = template.prompt("hello you"), template.answer_ids(score.label)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[0]
        logprobs = logits.log_softmax(-1)
        expected = sum(
            float(logprobs[len(prompt) - 1 + at, token]) for at, token in enumerate(answer)
        )
        assert score.logprob == pytest.approx(expected, abs=1e-4)
    assert sum(score.probability for score in scores) == pytest.approx(1)
    assert scores == sorted(scores, key=lambda score: -score.logprob)


def test_an_unknown_task_is_an_error_naming_the_valid_ones(make_base: Callable[..., Base]) -> None:
    with pytest.raises(UsageError, match=r"nope.*base"):
        Engine(make_base()).generate([("nope", "hello")])


def test_draws_are_measured(architecture: str, engine: Engine) -> None:
    """Log-probabilities and entropies of every draw are those of the whole text in one pass."""
    requests = mixed_requests()[:9]
    settings = Sampling(max_tokens=6, temperature=0.7, top_k=3, seed=3)
    streams = []
    for index, (name, prompt) in enumerate(requests):
        task = engine.tasks[name]
        ids = task.template.prompt(prompt)
        streams.append(request_of(task, ids, settings, record_draws=index != 4))
    for index, stream in enumerate(answered(streams, slots=5)):
        if index == 4:
            assert stream.logprobs == stream.entropies == []
            continue
        end = [] if stream.ended_by is None else [stream.ended_by]
        generated = [*stream.tokens, *end]
        pack = Pack({name: task.contribution for name, task in engine.tasks.items()})
        pack.add(requests[index][0], [*stream.prompt, *generated])
        first = len(pack.ids) - len(generated) - 1
        with torch.no_grad():
            logits = run_pack(engine.base, pack, torch.arange(first, len(pack.ids) - 1)) / 0.7
        logprobs = logits.log_softmax(-1)
        expected = logprobs[torch.arange(len(generated)), generated]
        torch.testing.assert_close(torch.tensor(stream.logprobs), expected, atol=1e-5, rtol=1e-5)
        entropies = -(logprobs.exp() * logprobs).sum(-1)
        torch.testing.assert_close(torch.tensor(stream.entropies), entropies, atol=1e-5, rtol=1e-5)


def alone(engine: Engine, request: tuple[str, str], sampling: Sampling) -> Request:
    """One request after it was answered in a batch of its own."""
    name, prompt = request
    task = engine.tasks[name]
    return answered([request_of(task, task.template.prompt(prompt), sampling)])[0]


def test_64_mixed_requests_give_what_each_gives_alone(
    engine: Engine, record_property: Callable[[str, object], None]
) -> None:
    """Token for token; two of each method, of many lengths and limits, and the bare base; with
    a slot for each and with far too few.
    """
    requests = mixed_requests()
    limits = [Sampling(max_tokens=(3, 16, 9)[index % 3]) for index in range(len(requests))]
    singles = [alone(engine, *request) for request in zip(requests, limits, strict=True)]
    assert len({single.text for single in singles}) > 15
    exceptions, largest = 0, 0.0
    for slots in (64, 5):
        again = [request_of(one.tasks[0], one.prompt, one.sampling) for one in singles]
        for single, stream in zip(singles, answered(again, slots), strict=True):
            pairs = enumerate(zip(single.tokens, stream.tokens, strict=False))
            differing = next((at for at, (one, other) in pairs if one != other), None)
            if differing is not None:
                exceptions += 1
                assert min(single.margins[differing], stream.margins[differing]) < 1e-4
                continue
            assert stream.tokens == single.tokens
            assert (stream.text, stream.finish_reason) == (single.text, single.finish_reason)
            gaps = zip(single.margins, stream.margins, strict=True)
            largest = max(largest, *(abs(one - other) for one, other in gaps))
    print(f"{exceptions} of 128 differ, each at a margin under 1e-4; margins by {largest:.1e}")
    assert exceptions <= 2
    assert largest < 1e-4
    record_property("exceptions", exceptions)
    record_property("margins", largest)
    answers = engine.generate(requests, Sampling(max_tokens=16))
    for single, answer in list(zip(singles, answers, strict=True))[1::3]:
        assert answer.text == single.text.strip() or answer.margin < 1e-4


def test_the_base_generates_what_transformers_generates(
    architecture: str, make_base: Callable[..., Base], plain_model: Callable[..., Any]
) -> None:
    engine = Engine(make_base(architecture))
    model = plain_model(architecture)
    for prompt in ("hello", "where is the parcel? " * 3):
        stream = alone(engine, ("base", prompt), Sampling(max_tokens=24))
        ids = torch.tensor([stream.prompt])
        with torch.no_grad():
            reference = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False
            )
        tokens = reference[0, len(stream.prompt) :].tolist()
        ends = {engine.base.tokenizer.eos_token_id}
        assert stream.tokens == [token for token in tokens if token not in ends]


def test_gemma_slides_its_window_while_decoding(make_base: Callable[..., Base]) -> None:
    """Far beyond the window of 8, behind a prefix longer than it."""
    base = make_base("gemma3")
    engine = Engine(base)
    for method in METHODS:
        settings = {} if method == "lora" else {"virtual_tokens": 11}
        adapter = build_adapter(base, method, settings, init_text="hello", seed=0)
        engine.tasks.load(method, adapter, Template(base.tokenizer))
    for name in ("base", *METHODS):
        stream = alone(engine, (name, "hi"), Sampling(max_tokens=40))
        ids = list(stream.prompt)
        assert len(ids) + len(stream.tokens) > 30
        pack = Pack({name: task.contribution for name, task in engine.tasks.items()})
        node = pack.nodes[pack.add(None if name == "base" else name, ids + stream.tokens)]
        rows = torch.arange(node.start + len(ids) - 1, node.start + node.length - 1)
        with torch.no_grad():
            best = run_pack(base, pack, rows).topk(2)
        assert best.indices[:, 0].tolist() == stream.tokens
        margins = (best.values[:, 0] - best.values[:, 1]).tolist()
        assert margins == pytest.approx(stream.margins[: len(margins)], abs=1e-4)


def llama(make_base: Callable[..., Base]) -> tuple[Engine, Request]:
    """An engine and what its base says to a prompt in 20 tokens."""
    engine = Engine(make_base())
    return engine, alone(engine, ("base", "hello today"), Sampling(max_tokens=20))


def test_the_end_token_stops(
    make_base: Callable[..., Base], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, stream = llama(make_base)
    assert stream.finish_reason == "length"
    end = next(t for at, t in enumerate(stream.tokens) if at > 2 and t not in stream.tokens[:at])
    config = engine.base.model.generation_config
    monkeypatch.setattr(config, "eos_token_id", [2, end])
    again = alone(engine, ("base", "hello today"), Sampling(max_tokens=20))
    assert again.finish_reason == "stop"
    assert again.tokens == stream.tokens[: stream.tokens.index(end)]
    monkeypatch.setattr(config, "eos_token_id", [stream.tokens[0]])
    answer = engine.generate([("base", "hello today")])[0]
    assert (answer.text, answer.tokens, answer.finish_reason) == ("", 0, "stop")


def test_the_earliest_stop_text_ends_the_answer(make_base: Callable[..., Base]) -> None:
    engine, stream = llama(make_base)
    decode = engine.base.tokenizer.decode
    longest = max(stream.tokens, key=lambda token: len(decode([token])))
    at = stream.tokens.index(longest)
    word = decode([longest])
    assert len(word) > 1
    before = decode(stream.tokens[:at])
    if word[0] in before or word[1:] in before:
        pytest.fail("choose another prompt")
    for stop in ((word[0], word[1:]), (word[1:], word[0])):  # both end in one token
        cut = alone(engine, ("base", "hello today"), Sampling(max_tokens=20, stop=stop))
        assert cut.finish_reason == "stop"
        assert cut.text == before


def test_sampling_at_its_limits_is_greedy(make_base: Callable[..., Base]) -> None:
    engine, stream = llama(make_base)
    for cut in ({"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-5}):
        settings = {"temperature": 1.5, "max_tokens": 20, "seed": 1, **cut}
        drawn = alone(engine, ("base", "hello today"), Sampling.model_validate(settings))
        assert drawn.tokens == stream.tokens
