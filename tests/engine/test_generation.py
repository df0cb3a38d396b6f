"""Mixed-batch generation: isolation, the cache, sampling, stopping."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from onebase.adapters.methods import build_adapter
from onebase.data.template import Template
from onebase.engine.attention import Rule
from onebase.engine.kv_cache import KVCache
from onebase.engine.engine import Engine
from onebase.engine.forward import run_pack
from onebase.engine.generation import Batch, Stream, end_tokens
from onebase.engine.pack import Pack
from onebase.engine.sampling import Sampling, choose
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
            pack = Pack(engine.tasks.contributions())
            pack.add(name, ids + answer)
            with torch.no_grad():
                logits = run_pack(engine.base, pack, torch.tensor([len(pack.ids) - 1]))[0]
            token = int(logits.argmax())
            if token == engine.base.tokenizer.eos_token_id:
                break
            answer.append(token)
        text = engine.base.tokenizer.decode(answer, skip_special_tokens=True).strip()
        assert engine.generate([(name, prompt)], Sampling(max_tokens=12))[0].text == text


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
    assert stop not in cut.text
    assert whole.text.startswith(cut.text)


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


def test_choice_of_the_next_token() -> None:
    logits = torch.log(torch.tensor([0.1, 0.5, 0.15, 0.25]))
    generator = torch.Generator().manual_seed(0)

    def shares(**settings: float) -> list[float]:
        sampling = Sampling.model_validate({"temperature": 1.0, **settings})
        drawn = [choose(logits, sampling, generator) for _ in range(4000)]
        return [drawn.count(token) / 4000 for token in range(4)]

    assert choose(logits, Sampling(), None) == 1
    tiny = Sampling(temperature=1e-40)
    assert choose(logits, tiny, generator) == 1  # the limit of greedy, without an overflow
    assert shares() == pytest.approx([0.1, 0.5, 0.15, 0.25], abs=0.03)
    assert shares(top_k=2) == pytest.approx([0, 2 / 3, 0, 1 / 3], abs=0.03)
    assert shares(top_p=0.7) == pytest.approx([0, 2 / 3, 0, 1 / 3], abs=0.03)
    assert shares(top_p=0.1) == [0, 1, 0, 0]
    halved = torch.tensor([0.01, 0.25, 0.0225, 0.0625])
    assert shares(temperature=0.5) == pytest.approx((halved / halved.sum()).tolist(), abs=0.03)


def test_what_has_no_probability_is_never_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the random number, at both ends of a distribution and where it has holes."""
    logits = torch.tensor([0.0, 1.0, 0.0, 2.0, 0.0, 0.0]).log()
    found = {}
    for number in (0.0, 0.33, 0.34, 1 - 2**-53, 1.0):
        monkeypatch.setattr(
            torch, "rand", lambda *_, at=number, **__: torch.tensor(at, dtype=torch.float64)
        )
        found[number] = choose(logits, Sampling(temperature=1.0), None)
    assert list(found.values()) == [1, 1, 3, 3, 3]


def test_draws_are_measured(architecture: str, engine: Engine) -> None:
    """Log-probabilities and entropies of every draw are those of the whole text in one pass."""
    requests = mixed_requests()[:9]
    settings = Sampling(max_tokens=6, temperature=0.7, top_k=3, seed=3)
    streams = []
    for index, (name, prompt) in enumerate(requests):
        ids = tuple(engine.tasks[name].template.prompt(prompt))
        streams.append(Stream(name, ids, settings, measured=index != 4))
    for index, stream in enumerate(streamed(engine, streams, slots=5)):
        assert stream.adapter
        if index == 4:
            assert stream.logprobs == stream.entropies == []
            continue
        end = [] if stream.ended_by is None else [stream.ended_by]
        said = [*stream.tokens, *end]
        pack = Pack(engine.tasks.contributions())
        pack.add(stream.adapter, [*stream.prompt, *said])
        first = len(pack.ids) - len(said) - 1
        with torch.no_grad():
            logits = run_pack(engine.base, pack, torch.arange(first, len(pack.ids) - 1)) / 0.7
        logprobs = logits.log_softmax(-1)
        expected = logprobs[torch.arange(len(said)), said]
        torch.testing.assert_close(torch.tensor(stream.logprobs), expected, atol=1e-5, rtol=1e-5)
        entropies = -(logprobs.exp() * logprobs).sum(-1)
        torch.testing.assert_close(torch.tensor(stream.entropies), entropies, atol=1e-5, rtol=1e-5)


def alone(engine: Engine, request: tuple[str, str], sampling: Sampling) -> Stream:
    """The stream of one request in a batch of its own."""
    name, prompt = request
    ids = tuple(engine.tasks[name].template.prompt(prompt))
    return streamed(engine, [Stream(None if name == "base" else name, ids, sampling)])[0]


def streamed(engine: Engine, streams: list[Stream], slots: int = 64) -> list[Stream]:
    batch = Batch(engine.base, engine.tasks.contributions(), slots=slots)
    for stream in streams:
        batch.submit(stream)
    while not batch.idle:
        batch.step()
    return streams


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
        streams = [Stream(single.adapter, single.prompt, single.sampling) for single in singles]
        for single, stream in zip(singles, streamed(engine, streams, slots), strict=True):
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
            made = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False
            )
        tokens = made[0, len(stream.prompt) :].tolist()
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
        pack = Pack(engine.tasks.contributions())
        node = pack.nodes[pack.add(stream.adapter, ids + stream.tokens)]
        rows = torch.arange(node.start + len(ids) - 1, node.start + node.length - 1)
        with torch.no_grad():
            best = run_pack(base, pack, rows).topk(2)
        assert best.indices[:, 0].tolist() == stream.tokens
        margins = (best.values[:, 0] - best.values[:, 1]).tolist()
        assert margins == pytest.approx(stream.margins[: len(margins)], abs=1e-4)


def llama(make_base: Callable[..., Base]) -> tuple[Engine, Stream]:
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
    assert end_tokens(engine.base) == {engine.base.tokenizer.eos_token_id, end}
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


def test_top_k_comes_before_top_p() -> None:
    """Of 0.4, 0.3, 0.2, 0.1 the two best are 4/7 and 3/7: the first alone reaches 0.5."""
    logits = torch.log(torch.tensor([0.2, 0.4, 0.1, 0.3]))
    generator = torch.Generator().manual_seed(0)

    def drawn(**settings: float) -> set[int]:
        sampling = Sampling.model_validate({"temperature": 1.0, **settings})
        return {choose(logits, sampling, generator) for _ in range(400)}

    assert drawn(top_k=2, top_p=0.5) == {1}
    assert drawn(top_p=0.5) == {1, 3}
    assert drawn(top_k=3, top_p=0.75) == {1, 3}
    assert drawn(top_k=3, top_p=0.8) == {0, 1, 3}
    assert drawn(top_k=99) == {0, 1, 2, 3}


def test_a_cache_keeps_each_sequence_through_release_and_growth(
    make_base: Callable[..., Base],
) -> None:
    shape = make_base().shape
    cache = KVCache(shape, 40, torch.device("cpu"), torch.float32)
    assert cache._keys.numel() == 0  # no room before there is a sequence
    drawn = torch.Generator().manual_seed(0)

    def keys_of(tokens: int) -> torch.Tensor:
        size = (shape.layers, shape.kv_heads, tokens, shape.head_dim)
        return torch.randn(size, generator=drawn)

    kept = [keys_of(5), keys_of(9), keys_of(3)]
    unseen = [(), (), (0, 0, 2)]  # two keys of the third's are not seen in the last layer
    for keys, hidden in zip(kept, unseen, strict=True):
        cache.admit(keys, -keys, hidden)
    assert (cache.used, cache.lengths) == (3, [5, 9, 3])

    def check() -> None:
        assert cache.lengths == [keys.shape[2] for keys in kept]
        for slot, keys in enumerate(kept):
            assert torch.equal(cache._keys[:, slot, :, : keys.shape[2]], keys)
            assert torch.equal(cache._values[:, slot, :, : keys.shape[2]], -keys)

    check()
    cache.release(0)  # the last one moves into its place
    kept = [kept[2], kept[1]]
    check()
    cache.release(1)  # the last itself
    kept = kept[:1]
    check()
    kept.append(keys_of(200))  # beyond the capacity
    cache.admit(kept[1], -kept[1])
    check()
    assert cache._keys.shape[3] >= 201
    kept.append(keys_of(4))
    cache.admit(kept[2], -kept[2], (0, 3, 1))
    unseen = [(0, 0, 2), (), (0, 3, 1)]
    rule = Rule(None, None, None)
    for _ in range(300):  # over the edge once more
        step = cache.step()
        new = torch.randn(shape.kv_heads, 3, shape.head_dim, generator=drawn)
        query = torch.randn(shape.heads, 3, shape.head_dim, generator=drawn)
        for layer in range(shape.layers):
            seen = step.attend(layer, query, new, -new, rule)
        added = new.transpose(0, 1)[:, None, :, None].expand(-1, shape.layers, -1, -1, -1)
        kept = [torch.cat([keys, own], 2) for keys, own in zip(kept, added, strict=True)]
    check()
    for _ in range(3):
        kept.append(keys_of(2))
        unseen.append(())
        cache.admit(kept[-1], -kept[-1])
    check()
    assert cache._keys.shape[1] == 8  # rows double
    for slot, keys in enumerate(kept[:3]):
        first = unseen[slot][-1] if unseen[slot] else 0
        own = keys[-1, :, first:].repeat_interleave(shape.heads // shape.kv_heads, 0)
        scores = (query[:, slot, None] @ own.transpose(1, 2)) * shape.head_dim**-0.5
        by_hand = (scores.softmax(-1) @ -own)[:, 0]
        torch.testing.assert_close(seen[slot], by_hand, atol=1e-5, rtol=0)
