"""The choice of the next token: what it is, and that a row's is its own."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from onebase.engine.request import Request
from onebase.engine.sampler import Draw, Sampler, _greedy_on_device
from onebase.engine.sampling import Sampling
from onebase.errors import UsageError

VOCABULARY = 1000


def request(*generated: int, prompt: tuple[int, ...] = (1, 2, 3), **settings: Any) -> Request:
    ends, record_draws = settings.pop("ends", frozenset()), settings.pop("record_draws", False)
    sampling = Sampling(**settings)
    built = Request((), prompt, sampling, 1 << 20, ends=ends, record_draws=record_draws)
    built.tokens += generated
    if sampling.seed is not None:
        built.generator = torch.Generator().manual_seed(sampling.seed)
    return built


def draw_one(logits: Any, sampling_request: Request) -> Draw:
    (drawn,) = Sampler().sample(torch.as_tensor(logits).float()[None], [sampling_request])
    return drawn


def random_logits(rows: int, vocabulary: int = VOCABULARY, seed: int = 0) -> Tensor:
    return 3 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


def shares(probabilities: list[float], count: int = 4000, **settings: Any) -> list[float]:
    """How often each token is drawn."""
    logits = torch.tensor(probabilities).log()[None].expand(count, -1).contiguous()
    sampling_request = request(temperature=1.0, **settings)
    sampling_request.generator = torch.Generator().manual_seed(0)
    drawn = Counter(draw.token for draw in Sampler().sample(logits, [sampling_request] * count))
    return [drawn[token] / count for token in range(len(probabilities))]


def test_greedy_takes_the_best_token_and_says_how_far_the_next_is() -> None:
    logits = random_logits(7)
    best = logits.topk(2)
    for row, drawn in enumerate(Sampler().sample(logits, [request()] * 7)):
        assert drawn.token == best.indices[row, 0]
        assert drawn.margin == best.values[row, 0] - best.values[row, 1]


def test_the_lowest_of_equal_tokens_is_best() -> None:
    logits = torch.zeros(VOCABULARY)
    logits[[700, 300, 301, 999]] = 2.5
    drawn = draw_one(logits, request(logprobs=4))
    assert (drawn.token, drawn.margin) == (300, 0)
    assert [token for token, _ in drawn.top] == [300, 301, 700, 999]
    assert draw_one(logits, request(temperature=1.0, top_k=1)).token == 300
    assert draw_one(logits, request(temperature=1.0, top_p=1e-6)).token == 300


def test_a_device_of_its_own_draws_alike() -> None:
    """What is done on a GPU, where the logits stay; here on the CPU, against the kernels."""
    logits = random_logits(9)
    logits[::2] = (2 * logits[::2]).round() / 2
    logits[4] = torch.nan
    assert _greedy_on_device(logits) == Sampler().sample(logits, [request()] * 9)


SETTINGS: list[dict[str, Any]] = [
    {},
    {"logprobs": 3},
    {"temperature": 0.7, "seed": 1, "record_draws": True},
    {"temperature": 1.3, "seed": 2, "top_p": 0.9, "logprobs": 0},
    {"temperature": 1.0, "seed": 3, "top_k": 40, "top_p": 0.95, "min_p": 0.02},
    {"temperature": 2.0, "seed": 4, "top_k": 400},
    {"repetition_penalty": 1.3, "record_draws": True},
    {"frequency_penalty": 0.5, "presence_penalty": 0.5, "temperature": 1.0, "seed": 5},
    {"logit_bias": {5: 3.0, 9: -3.0}, "logprobs": 2},
    {"min_tokens": 99, "ends": frozenset(range(0, VOCABULARY, 2))},
    {"temperature": 5.0, "seed": 6, "top_p": 0.99},
]


@pytest.mark.parametrize("vocabulary", [300, 1000, 49152])
def test_a_row_is_drawn_alike_alone_and_in_any_batch(vocabulary: int) -> None:
    generator = np.random.default_rng(vocabulary)
    logits = random_logits(24, vocabulary)
    logits[::3] = (4 * logits[::3]).round() / 4  # many equal logits

    def sampling_request(row: int) -> Request:
        settings = dict(SETTINGS[row % len(SETTINGS)])
        if "ends" in settings:
            settings["ends"] = frozenset(range(0, vocabulary, 2))
        return request(7, 8, 8, row, **settings)

    alone = [draw_one(logits[row], sampling_request(row)) for row in range(24)]
    sampler = Sampler()
    for _ in range(6):
        rows = generator.choice(24, generator.integers(1, 25), replace=False).tolist()
        together = sampler.sample(logits[rows], [sampling_request(row) for row in rows])
        assert together == [alone[row] for row in rows]


def test_draws_follow_the_probabilities() -> None:
    wanted = [0.1, 0.5, 0.15, 0.25]
    assert shares(wanted) == pytest.approx(wanted, abs=0.03)
    assert shares(wanted, top_k=2) == pytest.approx([0, 2 / 3, 0, 1 / 3], abs=0.03)
    # The fewest tokens that hold the share: .5 and .25 hold .75, .15 more hold .9.
    assert shares(wanted, top_p=0.75) == pytest.approx([0, 2 / 3, 0, 1 / 3], abs=0.03)
    assert shares(wanted, top_p=0.76) == pytest.approx([0, 5 / 9, 1 / 6, 5 / 18], abs=0.03)
    # .15 is .3 of the best.
    assert shares(wanted, min_p=0.29) == pytest.approx([0, 5 / 9, 1 / 6, 5 / 18], abs=0.03)
    assert shares(wanted, min_p=0.31) == pytest.approx([0, 2 / 3, 0, 1 / 3], abs=0.03)
    # top_p is of what the others have left: .5 is two thirds of .75.
    assert shares(wanted, top_k=2, top_p=0.66) == [0, 1, 0, 0]
    assert shares(wanted, min_p=0.4, top_p=0.66) == [0, 1, 0, 0]
    squared = [0.01, 0.25, 0.0225, 0.0625]
    assert shares(wanted, logit_bias={}) == pytest.approx(wanted, abs=0.03)
    sampling_request = request(temperature=0.5)
    sampling_request.generator = torch.Generator().manual_seed(0)
    rows = torch.tensor(wanted).log()[None].expand(4000, -1)
    drawn = Counter(draw.token for draw in Sampler().sample(rows, [sampling_request] * 4000))
    assert [drawn[token] / 4000 for token in range(4)] == pytest.approx(
        [share / sum(squared) for share in squared], abs=0.03
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 70},
        {"top_k": 500},
        {"top_p": 0.9},
        {"top_p": 0.2},
        {"top_k": 200, "top_p": 0.8},
        {"min_p": 0.01},
        {"min_p": 0.003, "top_p": 0.7},
        {"min_p": 0.003, "top_k": 90, "top_p": 0.7},
        {"min_p": 0.3, "top_k": 50},
        {"min_p": 0.9, "top_k": 90},
    ],
)
def test_what_is_cut_off_is_what_a_plain_sort_cuts_off(settings: dict[str, Any]) -> None:
    """Over many tokens, where the kernels divide by a histogram in place of sorting."""
    logits = random_logits(1)[0]
    logits[::2] = (2 * logits[::2]).round() / 2
    order = sorted(range(VOCABULARY), key=lambda token: (-float(logits[token]), token))
    probabilities = (logits.double() / 2).softmax(0)
    kept = [t for t in order if probabilities[t] >= settings.get("min_p", 0) * probabilities.max()]
    kept = kept[: settings.get("top_k") or None]
    held = np.cumsum([float(probabilities[token]) for token in kept])
    kept = kept[: int(np.searchsorted(held, settings.get("top_p", 1) * held[-1])) + 1]

    sampling_request = request(temperature=2.0, seed=0, **settings)
    sampler = Sampler()
    sampler.sample(logits[None], [request(temperature=9.0)])  # it leaves its numbers in the buffers
    draws = sampler.sample(logits.expand(8000, -1), [sampling_request] * 8000)
    drawn = Counter(draw.token for draw in draws)
    assert set(drawn) <= set(kept)
    assert len(drawn) > 0.8 * len(kept)
    for token in kept[:5]:
        share = float(probabilities[token] / probabilities[kept].sum())
        assert drawn[token] / 8000 == pytest.approx(share, abs=4 * (share / 8000) ** 0.5)


def test_a_seed_gives_the_same_draws() -> None:
    def answer(seed: int) -> list[int]:
        sampling_request = request(temperature=1.0, seed=seed)
        return [Sampler().sample(random_logits(1), [sampling_request])[0].token for _ in range(20)]

    assert answer(3) == answer(3) != answer(4)


def test_any_temperature_is_finite() -> None:
    logits = torch.tensor([1.0, 50.0, 49.999, -30.0])
    for temperature in (5e-324, 1e-40, 1e-7):
        assert draw_one(logits, request(temperature=temperature)).token == 1
    hot = request(temperature=1e30, seed=0)
    drawn = {draw_one(logits, hot).token for _ in range(200)}
    assert drawn == {0, 1, 2, 3}
    hottest = request(temperature=1e60, seed=0, min_p=0.5)  # whose inverse is 0 in 32 bits
    assert {draw_one(logits, hottest).token for _ in range(200)} == {0, 1, 2, 3}


def test_penalties_by_hand() -> None:
    logits = [2.0, 1.9, -1.0, 0.5]
    # Token 0 stands in the prompt, token 1 twice in the answer, token 2 in both.
    history = {"prompt": (0, 2, -1), "logprobs": 0}

    def chosen(**settings: float) -> list[float]:
        row = np.array(logits, np.float32)
        return Sampler()._processed(row, request(1, 1, 2, **history, **settings), None).tolist()

    assert chosen(repetition_penalty=2.0) == pytest.approx([1.0, 0.95, -2.0, 0.5])
    assert chosen(frequency_penalty=0.5) == pytest.approx([2.0, 0.9, -1.5, 0.5])
    assert chosen(presence_penalty=0.5) == pytest.approx([2.0, 1.4, -1.5, 0.5])
    assert chosen(repetition_penalty=2.0, frequency_penalty=0.5, presence_penalty=-1.0) == (
        pytest.approx([1.0, 0.95, -1.5, 0.5])
    )
    assert draw_one(logits, request(1, 1, 2, **history, repetition_penalty=5.0)).token == 3
    assert draw_one(logits, request(1, 1, 2, **history, presence_penalty=2.0)).token == 0


def test_penalties_see_each_new_token() -> None:
    sampling_request, sampler = request(frequency_penalty=1.0), Sampler()
    logits = torch.tensor([[3.0, 2.5, 0.0, 0.0]])
    for expected in (0, 1, 0, 1, 0, 1):
        (drawn,) = sampler.sample(logits, [sampling_request])
        assert drawn.token == expected
        sampling_request.tokens.append(drawn.token)


def test_bias_moves_the_choice_and_not_the_report() -> None:
    logits = torch.tensor([1.0, 2.0, 3.0])
    drawn = draw_one(logits, request(logit_bias={0: 10, 2: -1.5}, logprobs=2))
    assert (drawn.token, drawn.margin) == (0, 9)
    expected = logits.log_softmax(0).tolist()
    assert drawn.logprob == pytest.approx(expected[0])
    assert dict(drawn.top) == pytest.approx({2: expected[2], 1: expected[1]})


def test_no_end_is_drawn_too_early() -> None:
    logits = torch.tensor([1.0, 9.0, 8.0, 2.0])
    sampling_request = request(min_tokens=2, ends=frozenset({1, 2}))
    sampler = Sampler()
    for expected in (3, 3, 1):
        (drawn,) = sampler.sample(logits[None], [sampling_request])
        assert drawn.token == expected
        sampling_request.tokens.append(drawn.token)
    hot = request(min_tokens=1, ends=frozenset({1, 2}), temperature=1.0)
    assert {draw_one(logits, hot).token for _ in range(50)} == {0, 3}


def test_logprobs_are_those_of_the_model_itself() -> None:
    logits = random_logits(1)[0]
    expected = logits.double().log_softmax(0)
    sampling_request = request(
        4, temperature=3.0, seed=1, top_k=5, repetition_penalty=1.5, logprobs=6
    )
    drawn = draw_one(logits, sampling_request)
    assert drawn.logprob == pytest.approx(float(expected[drawn.token]), abs=1e-6)
    values, tokens = expected.topk(6)
    assert [token for token, _ in drawn.top] == tokens.tolist()
    assert [logprob for _, logprob in drawn.top] == pytest.approx(values.tolist(), abs=1e-6)
    assert draw_one(logits, request(logprobs=0)).top == ()
    assert draw_one(logits, request()).logprob is None


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0, 2.5])
def test_a_measured_request_is_measured_at_its_temperature(temperature: float) -> None:
    logits = random_logits(1)[0]
    sampling_request = request(temperature=temperature, seed=0, top_k=3, record_draws=True)
    drawn = draw_one(logits, sampling_request)
    expected = (logits.double() / (temperature or 1.0)).log_softmax(0)
    assert drawn.policy_logprob == pytest.approx(float(expected[drawn.token]), abs=1e-5)
    entropy = float(-(expected.exp() * expected).sum())
    assert drawn.entropy == pytest.approx(entropy, abs=1e-5)


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0}, {"logprobs": 2}, {"top_p": 0.5}])
def test_logits_that_are_not_finite_are_an_error_of_that_row_alone(
    settings: dict[str, Any],
) -> None:
    logits = random_logits(3)
    logits[1] = torch.nan
    first, broken, last = Sampler().sample(logits, [request(**settings) for _ in range(3)])
    assert (broken.token, broken.error) == (-1, "the logits are not finite")
    assert first.error == last.error == ""
    alone = [draw_one(row, request(**settings, seed=0)) for row in logits]
    together = Sampler().sample(logits, [request(**settings, seed=0) for _ in range(3)])
    assert [together[0], together[2]] == [alone[0], alone[2]]
    assert all(0 <= draw.token < VOCABULARY for draw in (first, last, alone[0], alone[2]))


def test_a_bias_of_no_token_is_an_error_naming_it() -> None:
    with pytest.raises(UsageError, match=r"logit_bias has the token id 1000.*0 to 999"):
        Sampler().admit(request(logit_bias={1000: 1.0}), VOCABULARY)


def test_logits_of_any_type_are_taken() -> None:
    logits = random_logits(2).bfloat16()
    drawn = Sampler().sample(logits, [request(), request(logprobs=1)])
    assert [draw.token for draw in drawn] == logits.float().argmax(-1).tolist()


def test_what_has_no_probability_is_never_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the random number, at both ends of a distribution and where it has holes."""
    logits = torch.tensor([0.0, 1.0, 0.0, 2.0, 0.0, 0.0]).log()
    sampled = []
    for number in (0.0, 0.33, 0.34, 1 - 2**-53, 1.0):
        monkeypatch.setattr(
            torch, "rand", lambda *_, at=number, **__: torch.tensor(at, dtype=torch.float64)
        )
        sampled.append(draw_one(logits, request(temperature=1.0)).token)
    assert sampled == [1, 1, 3, 3, 3]
