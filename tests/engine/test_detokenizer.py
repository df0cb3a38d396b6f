"""An answer's text, piece by piece, against the tokenizer's own decoding of the whole."""

import codecs
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceTrainer
from tests.conftest import tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from onebase.engine.detokenizer import Detokenizer
from onebase.engine.token_bytes import TokenBytes, token_bytes
from onebase.model.cache import is_model_folder, models_folder
from onebase.model.chatglm_tokenizer import ChatGLMTokenizer
from onebase.model.tokenizer import read_tokenizer

TEXTS = [
    "hello, how are you today? the parcel is on its way.",
    "  two spaces,\n\n\ttabs , and 1 2  34",
    "你好，世界。こんにちは 한국어",
    "👋🏽 family: 👨‍👩‍👧‍👦 é e\u0301 ﷽",
    "def f(x):\n    return x  # €",
]
CONTROL, WORD = "<|im_end|>", "<filename>"


def with_specials(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=CONTROL)
    fast.add_special_tokens({"additional_special_tokens": [WORD, "<|im_start|>"]})
    return fast


def byte_level() -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [WORD, "<|user 用户|>"]})
    return tokenizer


def byte_fallback(*strip: Any) -> PreTrainedTokenizerFast:
    """As Llama's and, without the strip, Gemma's tokenizer."""
    letters = sorted(set("".join(TEXTS[:2]).replace(" ", "▁")))
    vocabulary = {"<unk>": 0, CONTROL: 1}
    for token in [*(f"<0x{byte:02X}>" for byte in range(256)), *letters, "▁the", "▁▁", "he", "你"]:
        vocabulary.setdefault(token, len(vocabulary))
    tokenizer = Tokenizer(
        models.BPE(vocabulary, [("h", "e")], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return with_specials(tokenizer)


def unigram() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", CONTROL], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return with_specials(tokenizer)


def word_piece() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=["[UNK]", CONTROL], show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return with_specials(tokenizer)


def smollm2() -> Any:
    folder = models_folder() / "smollm2-135m"
    if not is_model_folder(folder):
        pytest.skip("the embedded base is not in the cache")
    return read_tokenizer(folder)


@pytest.fixture(scope="module")
def sentencepiece_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sentencepiece")
    SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 20),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=360,
        byte_fallback=True,
        hard_vocab_limit=False,
        character_coverage=0.98,
        minloglevel=2,
    )
    return folder / "tokenizer.model"


FAST: dict[str, Callable[[], Any]] = {
    "smollm2": smollm2,
    "byte-level": byte_level,
    "byte-fallback": byte_fallback,
    "byte-fallback-strip": lambda: byte_fallback(decoders.Strip(" ", 1, 0)),
    "unigram": unigram,
    "word-piece": word_piece,
}


@pytest.fixture(scope="module", params=[*FAST, "chatglm2", "chatglm3"])
def tokenizer(request: pytest.FixtureRequest, sentencepiece_model: Path) -> Any:
    if request.param in FAST:
        return FAST[request.param]()
    return ChatGLMTokenizer(sentencepiece_model, generation=2 + (request.param == "chatglm3"))


def control(tokenizer: Any) -> frozenset[int]:
    """Some control tokens to hide."""
    if isinstance(tokenizer, ChatGLMTokenizer):
        return frozenset(tokenizer.ends + tokenizer.prefix_tokens)
    return frozenset(tokenizer.convert_tokens_to_ids([CONTROL, "<|im_start|>"])) - {None}


def raw_bytes(tokenizer: Any, token: int) -> bytes | None:
    """The byte, or bytes, of a token that may be a part of a character."""
    word = tokenizer.convert_ids_to_tokens(token)
    if word and word.startswith("<0x"):
        return bytes([int(word[3:5], 16)])
    return None


def unfinished(data: bytes) -> int:
    """How many bytes at the end of `data` begin a character that is not complete."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data)
    return len(decoder.getstate()[0])


def whole(tokenizer: Any, tokens: Sequence[int]) -> str:
    """What the tokenizer itself makes of all tokens, without unfinished bytes at the end."""
    text: str = tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
    words = TokenBytes(tokenizer)
    if words.errors == "replace":
        tail = b"".join(words.inside(token) for token in tokens[-4:])
        return text[: len(text) - 1] if unfinished(tail) else text
    run = b""
    for token in reversed(tokens):
        byte = raw_bytes(tokenizer, token)
        if byte is None or len(run) == 4:
            break
        run = byte + run
    return text[: len(text) - unfinished(run)]


def pieces(tokenizer: Any, tokens: Sequence[int], stops: Sequence[str] = ()) -> list[str]:
    detokenizer = Detokenizer(tokenizer, control(tokenizer), stops)
    given = [detokenizer.add(token) for token in tokens if not detokenizer.stopped]
    return [*given, detokenizer.finish()]


def sequences(tokenizer: Any, count: int = 200) -> list[list[int]]:
    """Random tokens, and real texts with random tokens between; control tokens anywhere."""
    drawn = random.Random(0)
    specials = [*control(tokenizer), *tokenizer.added_tokens_decoder]
    made = []
    for index in range(count):
        if index % 2:
            tokens = [drawn.randrange(len(tokenizer) + 3) for _ in range(drawn.randrange(1, 24))]
        else:
            tokens = tokenizer(drawn.choice(TEXTS), add_special_tokens=False)["input_ids"]
            tokens = tokens[: drawn.randrange(1, len(tokens) + 1)]
        for _ in range(drawn.randrange(3)):
            tokens.insert(drawn.randrange(len(tokens) + 1), drawn.choice(specials))
        made.append(tokens)
    return made


def valid(tokenizer: Any, tokens: Sequence[int]) -> bool:
    """Whether every run of byte tokens is UTF-8. The tokenizers library reads a run with one wrong
    byte as wrong bytes alone; SentencePiece, and we, keep the characters beside it.
    """
    data = b"".join(raw_bytes(tokenizer, token) or b"|" for token in tokens)
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_the_pieces_joined_are_the_whole_text(tokenizer: Any) -> None:
    lossy = isinstance(tokenizer, ChatGLMTokenizer) or TokenBytes(tokenizer).errors == "replace"
    compared = 0
    for tokens in sequences(tokenizer):
        visible = [token for token in tokens if token not in control(tokenizer)]
        if not lossy and not valid(tokenizer, visible):
            continue
        compared += 1
        assert "".join(pieces(tokenizer, tokens)) == whole(tokenizer, visible)
    assert compared > 60


def test_stops_cut_before_the_first_of_them(tokenizer: Any) -> None:
    drawn = random.Random(1)
    stopped = 0
    for tokens in sequences(tokenizer):
        visible = [token for token in tokens if token not in control(tokenizer)]
        if not valid(tokenizer, visible):
            continue
        text = whole(tokenizer, visible)
        starts = [drawn.randrange(max(1, len(text))) for _ in range(3)]
        stops = [text[at : at + drawn.randrange(1, 6)] for at in starts]
        stops = [stop + drawn.choice(["", "", "never"]) for stop in stops if stop]

        expected, read = text, len(tokens)
        for count in range(1, len(visible) + 1):
            sofar = whole(tokenizer, visible[:count])
            positions = [sofar.find(stop) for stop in stops if stop in sofar]
            if positions:
                expected, read = sofar[: min(positions)], count
                break
        given = pieces(tokenizer, tokens, stops)
        assert "".join(given) == expected
        if read < len(tokens):
            stopped += 1
            hidden = sum(token in control(tokenizer) for token in tokens)
            assert len(given) - 1 <= read + hidden  # it stopped at that token and read no more
    assert stopped > 15


def test_no_piece_ends_inside_a_character() -> None:
    tokenizer = byte_level()
    text = "é你🙂é"
    given = pieces(tokenizer, tokenizer.encode(text))
    assert [piece for piece in given if piece] == list(text)


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_an_unfinished_character_is_left_off(make: Callable[[], Any]) -> None:
    tokenizer = make()
    ends_inside = tokenizer.encode("a🙂", add_special_tokens=False)[:-1]
    assert "".join(pieces(tokenizer, ends_inside)) == "a"
    assert "".join(pieces(tokenizer, ends_inside, ["never"])) == "a"


def byte_ids(tokenizer: Any, data: bytes) -> list[int]:
    words = TokenBytes(tokenizer)
    of_byte = {words.inside(token): token for token in range(len(tokenizer) - 1, -1, -1)}
    return [of_byte[bytes([byte])] for byte in data]


@pytest.mark.parametrize(
    ("data", "by_bytes", "by_parts"),
    [
        (b"\xff", "\ufffd", "\ufffd"),
        (b"\x80\x80a", "\ufffd\ufffda", "\ufffd\ufffda"),
        (b"\xe4\xbda", "\ufffd\ufffda", "\ufffda"),
        (b"\xe4\xbd\xa0\xffa", "你\ufffda", "你\ufffda"),
        (b"\xf0\x9f\x99\xe4\xbd\xa0", "\ufffd\ufffd\ufffd你", "\ufffd你"),
        (b"\xed\xa0\x80a", "\ufffd\ufffd\ufffda", "\ufffd\ufffd\ufffda"),  # a surrogate
        ("\ufffd".encode(), "\ufffd", "\ufffd"),  # the character itself
        (b"a\xf0\x9f", "a", "a"),
    ],
)
def test_bytes_that_are_no_utf_8(data: bytes, by_bytes: str, by_parts: str) -> None:
    """A byte-level tokenizer's own decoding gives one U+FFFD for each broken part, SentencePiece's one
    for each byte. They come out as soon as no byte can complete them.
    """
    for make, expected in ((byte_fallback, by_bytes), (byte_level, by_parts)):
        tokenizer = make()
        assert "".join(pieces(tokenizer, byte_ids(tokenizer, data))) == expected


def test_broken_bytes_without_end_are_not_held_back(tokenizer: Any) -> None:
    words = TokenBytes(tokenizer)
    if b"\x80" not in {words.inside(token, 0) for token in range(len(tokenizer))}:
        pytest.skip("it has no tokens for bytes")
    token = next(t for t in range(len(tokenizer)) if words.inside(t, 0) == b"\x80")
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.add(token) for _ in range(50)] == ["\ufffd"] * 50


def test_what_may_begin_a_stop_is_held_back_until_it_is_sure() -> None:
    tokenizer = byte_level()
    detokenizer = Detokenizer(tokenizer, stops=("END", "NOW!"))

    def add(text: str) -> str:
        return "".join(detokenizer.add(token) for token in tokenizer.encode(text))

    assert add("say E") == "say "
    assert add("N") == ""
    assert add("O") == "E"  # "EN" was none; "NO" may be one
    assert add("W?") == "NOW?"
    assert add("EEN") == "E"
    assert detokenizer.finish() == "EN"
    assert add("D") == ""
    assert detokenizer.stopped
    assert add("more") == detokenizer.finish() == ""


def test_control_tokens_are_hidden_and_words_are_not() -> None:
    tokenizer = byte_level()
    hidden = frozenset(tokenizer.convert_tokens_to_ids(["<|im_start|>", CONTROL]))
    tokens = tokenizer.encode(f"read {WORD} a<|im_start|>b<|user 用户|>{CONTROL}c")
    detokenizer = Detokenizer(tokenizer, hidden)
    assert "".join(map(detokenizer.add, tokens)) == f"read {WORD} ab<|user 用户|>c"


@pytest.mark.parametrize(
    ("said", "stop", "expected"),
    [
        (f"read {WORD} it", WORD, "read "),
        (f"read {WORD} it", f"ad {WORD} ", "re"),
        (f"one{CONTROL}two", CONTROL, "one"),
        (f"one{CONTROL}two", f"e{CONTROL}tw", "on"),
        (f"one{CONTROL}{CONTROL}two", f"{CONTROL}{CONTROL}", "one"),
        (f"one{CONTROL}two", f"{CONTROL}{CONTROL}", "onetwo"),
        (f"one{CONTROL}two<|im_start|>", f"{CONTROL}t<|im_start|>", "onetwo"),
        # In the visible text a stop is found across a hidden token, and never in its name.
        (f"one{CONTROL}two", "net", "o"),
        (f"one{CONTROL}two", "im_end", "onetwo"),
        (f"one{CONTROL}two", ">", "onetwo"),
    ],
)
def test_a_stop_may_name_special_tokens(said: str, stop: str, expected: str) -> None:
    tokenizer = byte_level()
    assert "".join(pieces(tokenizer, tokenizer.encode(said), [stop, "never"])) == expected


def test_a_stop_is_found_behind_a_hidden_token_that_another_stop_names() -> None:
    tokenizer = byte_level()
    tokens = [t for part in ("a", CONTROL, "b", "c", "d") for t in tokenizer.encode(part)]
    assert pieces(tokenizer, tokens, [f"{CONTROL}bcdx", "cd"]) == ["a", "", "", "", "b", ""]


def test_a_hidden_token_may_be_spelt_as_a_part_of_another() -> None:
    tokenizer = byte_level()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<x>", "ab<x>"]})
    short, long = tokenizer.convert_tokens_to_ids(["<x>", "ab<x>"])
    for hidden in ([short, long], [long, short]):
        detokenizer = Detokenizer(tokenizer, frozenset(hidden), ("ab<x>",))
        assert [detokenizer.add(token) for token in (short, long)] == ["", ""]
        assert detokenizer.stopped


def test_a_control_token_that_is_spelt_out_is_a_stop_too() -> None:
    tokenizer = byte_level()
    spelt = [token for letter in f"one{CONTROL}two" for token in tokenizer.encode(letter)]
    assert "".join(pieces(tokenizer, spelt, [CONTROL])) == "one"


def test_the_end_token_completes_a_stop() -> None:
    tokenizer = byte_level()
    end = tokenizer.convert_tokens_to_ids(CONTROL)
    for stop, expected in ((f"\n{CONTROL}", "one"), ("\nx", "one\n")):
        detokenizer = Detokenizer(tokenizer, control(tokenizer), (stop,))
        given = [detokenizer.add(token) for token in tokenizer.encode("one\n")]
        assert "".join(given) + detokenizer.finish(end) == expected


def test_spaces_before_punctuation_stay() -> None:
    tokenizer = word_piece()
    tokenizer.clean_up_tokenization_spaces = True
    tokens = tokenizer.convert_tokens_to_ids(["h", ",", "h", "."])
    assert "".join(pieces(tokenizer, tokens)) == "h , h ."


def test_the_work_for_a_token_does_not_grow(tokenizer: Any, monkeypatch: Any) -> None:
    """By what is decoded, not by the clock: two tokens of context at the most, twice a token."""
    decoded: list[int] = []
    decode = tokenizer.decode

    def counted(tokens: Sequence[int], **settings: Any) -> Any:
        decoded.append(len(tokens))
        return decode(tokens, **settings)

    monkeypatch.setattr(tokenizer, "decode", counted)
    stops = ("a stop that never comes", "\n\n\n\n\n")
    detokenizer = Detokenizer(tokenizer, control(tokenizer), stops)
    drawn = random.Random(2)
    for _ in range(1500):
        before = len(decoded)
        detokenizer.add(drawn.randrange(len(tokenizer)))
        assert len(decoded) - before <= 2
        assert detokenizer._matcher is not None
        assert len(detokenizer._matcher._held) < max(map(len, stops))
    assert max(decoded, default=0) <= 3


def test_a_tokenizer_is_looked_up_once() -> None:
    tokenizer = byte_level()
    assert token_bytes(tokenizer) is token_bytes(tokenizer)
    assert token_bytes(tokenizer) is not token_bytes(byte_level())
