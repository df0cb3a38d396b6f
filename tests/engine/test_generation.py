"""Mixed-batch generation: isolation, the cache, sampling, stopping."""

from collections.abc import Callable

import pytest
import torch

from onebase.adapters.methods import build_adapter
from onebase.data.template import Template
from onebase.engine.engine import Engine
from onebase.engine.forward import run_pack
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


def test_64_mixed_requests_give_what_each_gives_alone(engine: Engine) -> None:
    requests = mixed_requests()
    sampling = Sampling(max_tokens=12)
    together = engine.generate(requests, sampling)
    assert len({answer.text for answer in together}) > 20
    near_ties = 0
    for request, answer in zip(requests, together, strict=True):
        alone = engine.generate([request], sampling)[0]
        if alone.text != answer.text:
            near_ties += 1
            assert min(alone.margin, answer.margin) < 1e-4
    print(f"{near_ties} of {len(requests)} differ, each at a margin under 1e-4")
    assert near_ties <= 2


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
    assert shares() == pytest.approx([0.1, 0.5, 0.15, 0.25], abs=0.03)
    assert shares(top_k=2) == pytest.approx([0, 2 / 3, 0, 1 / 3], abs=0.03)
    assert shares(top_p=0.7) == pytest.approx([0, 2 / 3, 0, 1 / 3], abs=0.03)
    assert shares(top_p=0.1) == [0, 1, 0, 0]
    halved = torch.tensor([0.01, 0.25, 0.0225, 0.0625])
    assert shares(temperature=0.5) == pytest.approx((halved / halved.sum()).tolist(), abs=0.03)
