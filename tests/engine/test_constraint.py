"""Answers held to JSON: what may follow, when an answer may end, what is refused."""

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from sentencepiece import SentencePieceTrainer
from tests.conftest import tiny_tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from onebase.engine.constraint import Constraint, ConstraintState
from onebase.engine.pool import LoadedTask
from onebase.engine.request import Request
from onebase.engine.sampler import Sampler
from onebase.engine.sampling import Sampling
from onebase.errors import UsageError
from onebase.language import set_language
from onebase.model.chatglm_tokenizer import ChatGLMTokenizer

VOCABULARY = 400  # padded beyond the tokenizer's
END = 2
OBJECT = Constraint("json_object")
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


def allowed(state: ConstraintState) -> set[int]:
    bits = np.unpackbits(state.mask().view(np.uint8), bitorder="little")
    return set(np.flatnonzero(bits).tolist())


def of_schema(schema: dict[str, Any]) -> Constraint:
    return Constraint("json_schema", json.dumps(schema))


def accepts(tokenizer: Any, constraint: Constraint, text: str) -> bool:
    """Whether `text` is allowed token by token, and the end after it."""
    state = ConstraintState(constraint, tokenizer, {END})
    for token in tokenizer.encode(text):
        if token not in allowed(state):
            return False
        state.advance(token)
    return END in allowed(state)


def ask(tokenizer: Any, constraint: Constraint, **settings: Any) -> Request:
    task = SimpleNamespace(base=SimpleNamespace(tokenizer=tokenizer))
    ends = settings.pop("ends", frozenset({END}))
    sampling = Sampling(constraint=constraint, **settings)
    return Request((cast(LoadedTask, task),), (5,), sampling, 400, ends=ends)


def random_logits(seed: int, rows: int = 1) -> Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def answer(tokenizer: Any, constrained: Request, most: int = 400) -> str | None:
    """An answer from random logits; None where it did not end."""
    sampler = Sampler()
    for step in range(most):
        sampler.prepare([constrained])
        (drawn,) = sampler.sample(2 * random_logits(1000 * most + step), [constrained])
        assert not drawn.error
        if drawn.token in constrained.ends:
            return str(tokenizer.decode(constrained.tokens))
        constrained.tokens.append(drawn.token)
        if drawn.complete and not constrained.ends:
            return str(tokenizer.decode(constrained.tokens))
    return None


def test_any_answer_is_of_the_schema(tokenizer: PreTrainedTokenizerFast) -> None:
    for seed in range(30):
        constrained = ask(tokenizer, of_schema(PERSON), temperature=1.0)
        constrained.generator = torch.Generator().manual_seed(seed)
        text = answer(tokenizer, constrained)
        assert text is not None
        person = json.loads(text)
        assert set(person) == {"name", "age", "tags"}
        assert len(person["name"]) <= 6
        assert type(person["age"]) is int
        assert 0 <= person["age"] <= 130
        assert set(person["tags"]) <= {"a", "b"}
        assert len(person["tags"]) <= 3


def test_any_json_object_is_an_object(tokenizer: PreTrainedTokenizerFast) -> None:
    ended = 0
    for seed in range(20):
        constrained = ask(tokenizer, OBJECT, temperature=1.0)
        constrained.generator = torch.Generator().manual_seed(seed)
        text = answer(tokenizer, constrained)
        if text is not None:
            ended += 1
            assert isinstance(json.loads(text), dict)
    assert ended > 5


def test_an_answer_ends_where_the_grammar_accepts_and_nowhere_else(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    state = ConstraintState(of_schema({"type": "integer"}), tokenizer, {END, 1})
    assert not {END, 1} & allowed(state)
    (one,) = tokenizer.encode("1")
    state.advance(one)
    assert {END, 1} < allowed(state)  # 1 may end, or go on to 12
    assert not state.complete
    assert 0 not in allowed(state)  # a control token that ends nothing

    state = ConstraintState(OBJECT, tokenizer, {END})
    for token in tokenizer.encode('{"a": 1}'):
        assert END not in allowed(state)
        state.advance(token)
    assert allowed(state) == {END}
    assert state.complete


def test_ends_are_the_ones_that_training_taught(tokenizer: PreTrainedTokenizerFast) -> None:
    """Not llguidance's own, which is the tokenizer's; and one that is text is no text any more."""
    (space,) = tokenizer.encode(" ")
    state = ConstraintState(OBJECT, tokenizer, {space})
    for token in tokenizer.encode("{}"):
        assert space not in allowed(state)
        state.advance(token)
    assert allowed(state) == {space}
    state.advance(space)
    assert (state.complete, state.error) == (True, "")


def test_an_answer_without_an_end_token_is_complete(tokenizer: PreTrainedTokenizerFast) -> None:
    constrained = ask(tokenizer, of_schema({"enum": ["yes", "no"]}), ends=frozenset())
    assert answer(tokenizer, constrained) in ('"yes"', '"no"')


def test_the_grammar_goes_before_min_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    constraint = of_schema({"enum": ["yes", "no"]})
    assert answer(tokenizer, ask(tokenizer, constraint, min_tokens=50)) in ('"yes"', '"no"')


def test_padding_of_the_vocabulary_is_never_drawn(tokenizer: PreTrainedTokenizerFast) -> None:
    constrained = ask(tokenizer, OBJECT)
    logits = random_logits(0)
    logits[0, len(tokenizer) :] = 100
    (drawn,) = Sampler().sample(logits, [constrained])
    assert tokenizer.decode([drawn.token]).startswith("{")


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ('{"score":5,"tags":[]}', True),
        ('{"score": 5, "tags": ["ab", "cd"]}', True),
        ('{\n  "score": 5,\n  "tags": [\n    "ab"\n  ]\n}', True),
        ('{\n\t"score": 5,\n\t"tags": [\n\t\t"ab"\n\t]\n}', True),
        ('{ "score" : 5 , "tags" : [ ] }', True),
        ('{  "score": 5, "tags": []}', False),
        ('{\n\n"score": 5, "tags": []}', False),
        ('{"score": 5, "tags": []} ', False),
        (' {"score": 5, "tags": []}', False),
    ],
)
def test_whitespace_is_free_and_bounded(
    tokenizer: PreTrainedTokenizerFast, text: str, fits: bool
) -> None:
    # With patternProperties: vLLM had endless whitespace from this schema (its pull request 30730).
    schema = {
        "type": "object",
        "properties": {
            "score": {"type": "integer", "multipleOf": 5},
            "tags": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["score", "tags"],
        "additionalProperties": False,
        "patternProperties": {"^score$": {"type": "integer"}},
    }
    assert accepts(tokenizer, of_schema(schema), text) is fits


@pytest.mark.parametrize(("liked", "most"), [(" \n", 1 + 32), ("\t\n", 1 + 8), (" ", 1)])
@pytest.mark.parametrize(
    "schema", [PERSON, {"type": "object", "patternProperties": {"^s$": {"type": "null"}}}]
)
def test_whitespace_alone_comes_to_an_end(
    tokenizer: PreTrainedTokenizerFast, schema: dict[str, Any], liked: str, most: int
) -> None:
    """A model that likes nothing better than whitespace still gets on with its answer."""
    texts = [tokenizer.decode([token]) for token in range(300)]
    logits = torch.zeros(1, VOCABULARY)
    logits[0, [at for at, text in enumerate(texts) if text and not text.strip(liked)]] = 10.0
    constrained, sampler = ask(tokenizer, of_schema(schema)), Sampler()
    longest = 0
    for _ in range(120):
        (drawn,) = sampler.sample(logits, [constrained])
        constrained.tokens.append(drawn.token)
        text = tokenizer.decode(constrained.tokens)
        if drawn.token in constrained.ends or text.count('"') % 2:
            break
        longest = max(longest, len(text) - len(text.rstrip()))
    else:
        pytest.fail("it never got on")
    assert longest == most


def test_characters_beyond_ascii_are_free_in_a_string(tokenizer: PreTrainedTokenizerFast) -> None:
    assert accepts(tokenizer, OBJECT, '{"名": "价格 €5 🙂"}')
    assert not accepts(tokenizer, OBJECT, '{"a": "\x01"}')


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "animal"}, "Invalid type: animal"),
        ({"type": "object", "properties": 5}, "properties must be an object"),
        ({"$ref": "#/definitions/none"}, "does not exist"),
        ({"$ref": "http://example.com/schema"}, "not present"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "array", "uniqueItems": True}, r'Unimplemented keys: \["uniqueItems"\]'),
        ({"enum": []}, "anyOf is empty"),
    ],
)
def test_a_schema_that_cannot_be_kept_is_an_error_with_the_reason(
    tokenizer: PreTrainedTokenizerFast, schema: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UsageError, match=rf"JSON schema can't be used: .*{reason}"):
        Sampler().admit(ask(tokenizer, of_schema(schema)), VOCABULARY)


def test_a_schema_that_is_no_json_is_an_error(tokenizer: PreTrainedTokenizerFast) -> None:
    set_language("zh")
    with pytest.raises(UsageError, match="无法使用该 JSON Schema"):
        ConstraintState(Constraint("json_schema", "{nope"), tokenizer, {END})


def test_a_slow_tokenizer_is_refused(tmp_path: Path) -> None:
    SentencePieceTrainer.train(
        sentence_iterator=iter(["hello you", "the parcel is on its way"] * 9),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=20,
        minloglevel=2,
    )
    tokenizer = ChatGLMTokenizer(tmp_path / "tokenizer.model", generation=3)
    with pytest.raises(UsageError, match="constrained: it has no fast tokenizer"):
        ConstraintState(OBJECT, tokenizer, tokenizer.ends)


def test_a_grammar_that_grows_too_complex_ends_its_request_alone(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    broken, fine = ask(tokenizer, OBJECT), ask(tokenizer, OBJECT)
    sampler = Sampler()
    for constrained in (broken, fine):
        sampler.admit(constrained, VOCABULARY)
    state = sampler._constraints[broken]
    state.advance(tokenizer.encode("x")[0])  # what the grammar does not allow
    logits = random_logits(3).expand(2, -1)
    first, second = sampler.sample(logits, [broken, fine])
    assert first.token == -1
    assert "satisfy the grammar" in first.error
    assert (second.error, second.token >= 0) == ("", True)


def test_constrained_and_free_requests_share_a_batch(tokenizer: PreTrainedTokenizerFast) -> None:
    """A request's tokens are the same alone and among others, constrained or not."""

    def requests() -> list[Request]:
        constraints = [OBJECT, None, of_schema(PERSON), None]
        constrained_requests = [
            ask(tokenizer, cast(Constraint, one), temperature=1.0) for one in constraints
        ]
        for seed, constrained in enumerate(constrained_requests):
            constrained.generator = torch.Generator().manual_seed(seed)
        return constrained_requests

    def run(sampler: Sampler, running: list[Request], places: list[int]) -> None:
        for step in range(25):
            sampler.prepare(running)
            logits = random_logits(step, rows=4)[places]
            for constrained, drawn in zip(running, sampler.sample(logits, running), strict=True):
                constrained.tokens.append(drawn.token)

    together, alone = requests(), requests()
    places = list(range(4))
    random.Random(0).shuffle(places)
    run(Sampler(), [together[place] for place in places], places)
    for place, constrained in enumerate(alone):
        run(Sampler(), [constrained], [place])
    assert [constrained.tokens for constrained in together] == [
        constrained.tokens for constrained in alone
    ]
