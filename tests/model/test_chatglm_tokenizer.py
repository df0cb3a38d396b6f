"""ChatGLM's tokenizer against SentencePiece, its control tokens, and its two chat layouts."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from jinja2 import TemplateError
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from onebase.data.check import check
from onebase.data.example import Dataset, Example, Turn
from onebase.data.template import Template
from onebase.errors import UsageError
from onebase.model.chatglm_tokenizer import ChatGLMTokenizer
from onebase.model.tokenizer import read_tokenizer

TEXTS = [
    "你好，很高兴见到你。",
    "hello, how are you today?",
    "😀👋🏽 emoji 和 中文 and English",
    "  several   spaces  ",
    "\nnewline\n\n\ttab\r\n",
    "1234567890 3.14 ２０２４",
    "people like Aesop's soap",
    "[gMASK] sop eop [MASK] <s>",
    "▁ literal ▁▁",
    "Ä é 한국어 العربية",
    " ",
    "\n",
    "",
]
TALK = [
    {"role": "user", "content": "你好"},
    {"role": "assistant", "content": "你好！"},
    {"role": "user", "content": " 晚上 睡不着\n怎么办"},
]
CONTROL = ["[MASK]", "[gMASK]", "[sMASK]", "sop", "eop"]
ROLES = ["<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]


@pytest.fixture
def sp(sentencepiece_model: Path) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_file=str(sentencepiece_model))


@pytest.fixture
def chatglm2(sentencepiece_model: Path) -> ChatGLMTokenizer:
    return ChatGLMTokenizer(sentencepiece_model, generation=2)


@pytest.fixture
def chatglm3(sentencepiece_model: Path) -> ChatGLMTokenizer:
    return ChatGLMTokenizer(sentencepiece_model, generation=3)


@pytest.fixture(params=["chatglm2", "chatglm3"])
def tokenizer(request: pytest.FixtureRequest) -> ChatGLMTokenizer:
    return request.getfixturevalue(request.param)


def ids_of(tokenizer: ChatGLMTokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_sentencepieces_ids_and_comes_back(
    tokenizer: ChatGLMTokenizer, sp: SentencePieceProcessor, text: str
) -> None:
    ids = ids_of(tokenizer, text)
    assert ids == sp.encode(text)
    assert tokenizer.decode(ids) == sp.decode(ids)
    assert tokenizer.decode(ids) == text.replace("▁", " ")  # SentencePiece's own sign for a space
    assert tokenizer.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids)


def test_every_text_begins_with_the_two_prefix_tokens(
    tokenizer: ChatGLMTokenizer, sp: SentencePieceProcessor
) -> None:
    size = sp.get_piece_size()
    prefix = [size + 1, size + 3]
    assert tokenizer("你好")["input_ids"] == prefix + sp.encode("你好")
    assert tokenizer("")["input_ids"] == prefix
    assert tokenizer(["你好", ""])["input_ids"] == [prefix + sp.encode("你好"), prefix]
    assert tokenizer.encode("你好") == prefix + sp.encode("你好")
    assert tokenizer.decode(tokenizer.encode("你好")) == "[gMASK]sop你好"
    assert tokenizer.decode(tokenizer.encode("你好"), skip_special_tokens=True) == "你好"


def test_control_tokens_follow_the_vocabulary(
    chatglm2: ChatGLMTokenizer, chatglm3: ChatGLMTokenizer, sp: SentencePieceProcessor
) -> None:
    size = sp.get_piece_size()
    for tokenizer, names in ((chatglm2, CONTROL), (chatglm3, CONTROL + ROLES)):
        assert tokenizer.convert_tokens_to_ids(names) == list(range(size, size + len(names)))
        assert tokenizer.convert_ids_to_tokens(list(range(size, len(tokenizer)))) == names
        assert len(tokenizer) == tokenizer.vocab_size == size + len(names)
        assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("</s>", 2)
        assert (tokenizer.pad_token_id, tokenizer.unk_token_id) == (0, 0)
    assert chatglm2.ends == [2]
    assert chatglm3.ends == [2, size + 6, size + 8]


def test_real_sizes_give_the_published_ids(chatglm3: ChatGLMTokenizer) -> None:
    """64789 pieces, and then: [gMASK] 64790, sop 64792, <|user|> 64795, <|assistant|> 64796."""
    beyond = 64789 - chatglm3.sentencepiece.get_piece_size()
    names = ["[gMASK]", "sop", "<|user|>", "<|assistant|>"]
    found = [index + beyond for index in chatglm3.convert_tokens_to_ids(names)]
    assert found == [64790, 64792, 64795, 64796]


def test_a_vocabulary_without_an_end_is_refused(tmp_path: Path) -> None:
    SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_prefix=str(tmp_path / "endless"),
        vocab_size=120,
        hard_vocab_limit=False,
        eos_id=-1,
        minloglevel=2,
    )
    with pytest.raises(ValueError, match="has no </s>"):
        ChatGLMTokenizer(tmp_path / "endless.model", generation=2)


def test_words_that_hold_sop_or_eop_stay_words(
    tokenizer: ChatGLMTokenizer, sp: SentencePieceProcessor
) -> None:
    """Both are pieces of this vocabulary, too."""
    for word in ("sop", "eop", "people", "Aesop"):
        ids = ids_of(tokenizer, word)
        assert ids == sp.encode(word)
        assert max(ids) < sp.get_piece_size()
    assert sp.piece_to_id("eop") in ids_of(tokenizer, "people")


def test_the_prefix_is_read_at_the_beginning_only(
    tokenizer: ChatGLMTokenizer, sp: SentencePieceProcessor
) -> None:
    assert ids_of(tokenizer, "[gMASK]sop你好") == tokenizer.prefix_tokens + sp.encode("你好")
    assert ids_of(tokenizer, "你好[gMASK]sop") == sp.encode("你好[gMASK]sop")
    assert ids_of(tokenizer, "[gMASK]") == sp.encode("[gMASK]")


def test_the_end_is_read_anywhere(tokenizer: ChatGLMTokenizer, sp: SentencePieceProcessor) -> None:
    assert ids_of(tokenizer, "你好</s>") == [*sp.encode("你好"), 2]
    assert ids_of(tokenizer, "</s>你好") == [2, *sp.encode("你好")]
    assert ids_of(tokenizer, "</s>a\nb") == [2, *sp.encode("a\nb")]
    assert tokenizer.decode([*sp.encode("你好"), 2], skip_special_tokens=True) == "你好"


def test_ids_that_are_no_token_decode_to_nothing(
    tokenizer: ChatGLMTokenizer, sp: SentencePieceProcessor
) -> None:
    """The model's vocabulary is padded: a random one may answer with any id."""
    size = sp.get_piece_size()
    beyond = range(len(tokenizer), 448)
    assert tokenizer.decode(range(448)) == tokenizer.decode(range(len(tokenizer)))
    assert tokenizer.decode(range(3, size)) == sp.decode(list(range(3, size)))
    assert [tokenizer.decode([token]) for token in beyond] == [""] * len(beyond)
    assert tokenizer.decode([447]) == tokenizer.convert_ids_to_tokens(447) == ""
    assert tokenizer.decode([*sp.encode("你好"), 447, *sp.encode("！")]) == "你好 ！"
    assert tokenizer.batch_decode([[447], sp.encode("你好")]) == ["", "你好"]


def test_half_a_character_decodes(tokenizer: ChatGLMTokenizer, sp: SentencePieceProcessor) -> None:
    ids = sp.encode("👋")
    assert [tokenizer.decode(ids[:count])[:1] for count in (len(ids) - 1, len(ids))] == ["�", "👋"]


def test_chatglm2s_rounds(chatglm2: ChatGLMTokenizer, sp: SentencePieceProcessor) -> None:
    text = chatglm2.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True)
    assert text == (
        "[gMASK]sop[Round 1]\n\n问：你好\n\n答：你好！\n\n"
        "[Round 2]\n\n问： 晚上 睡不着\n怎么办\n\n答："
    )
    # The original tokenises all rounds as one text behind the two prefix tokens.
    whole = chatglm2.prefix_tokens + sp.encode(text.removeprefix("[gMASK]sop"))
    assert ids_of(chatglm2, text) == whole
    assert chatglm2.apply_chat_template(TALK, add_generation_prompt=True)["input_ids"] == whole
    template = Template(chatglm2)
    turns = [Turn(item["role"], item["content"]) for item in TALK]
    assert (template.kind, template.end) == ("chat", "</s>")
    assert template.prompt(turns) == whole
    assert template.prompt_text("你好") == "[gMASK]sop[Round 1]\n\n问：你好\n\n答："


def test_chatglm2_hears_an_instruction_in_the_first_question(chatglm2: ChatGLMTokenizer) -> None:
    template = Template(chatglm2, instruction="请简短回答。")
    assert template.prompt_text("你好") == "[gMASK]sop[Round 1]\n\n问：请简短回答。\n你好\n\n答："
    turns = [Turn(item["role"], item["content"]) for item in TALK]
    assert template.prompt_text(turns).count("请简短回答。") == 1
    assert template.prompt_text(turns).startswith(
        "[gMASK]sop[Round 1]\n\n问：请简短回答。\n你好\n\n"
    )


@pytest.mark.parametrize(
    "roles", [["user", "user"], ["assistant", "user"], ["user", "system", "user"], ["tool", "user"]]
)
def test_chatglm2_refuses_what_is_no_round(chatglm2: ChatGLMTokenizer, roles: list[str]) -> None:
    with pytest.raises(TemplateError, match="in turns"):
        chatglm2.apply_chat_template(
            [{"role": role, "content": "?"} for role in roles], tokenize=False
        )
    if "tool" not in roles:
        with pytest.raises(UsageError, match="in turns"):
            Template(chatglm2).prompt([Turn(role, "?") for role in roles])


def test_chatglm3s_turns(chatglm3: ChatGLMTokenizer, sp: SentencePieceProcessor) -> None:
    """Role, line and content each by itself, as the original's build_chat_input."""
    talk = [{"role": "system", "content": "请简短回答。"}, *TALK]
    text = chatglm3.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    assert text == (
        "[gMASK]sop<|system|>\n 请简短回答。<|user|>\n 你好<|assistant|>\n你好！"
        "<|user|>\n  晚上 睡不着\n怎么办<|assistant|>\n"
    )
    expected = list(chatglm3.prefix_tokens)
    for item in talk:
        expected.append(chatglm3.convert_tokens_to_ids(f"<|{item['role']}|>"))
        expected += sp.encode("\n") + sp.encode(item["content"])
    expected += [chatglm3.convert_tokens_to_ids("<|assistant|>"), *sp.encode("\n")]
    assert ids_of(chatglm3, text) == expected
    template = Template(chatglm3, instruction="请简短回答。")
    assert template.prompt([Turn(item["role"], item["content"]) for item in TALK]) == expected
    assert template.prompt_text("你好") == (
        "[gMASK]sop<|system|>\n 请简短回答。<|user|>\n 你好<|assistant|>\n"
    )
    assert template.end == "</s>"


def test_chatglm3s_metadata_is_a_line_of_its_own(
    chatglm3: ChatGLMTokenizer, sp: SentencePieceProcessor
) -> None:
    role = chatglm3.convert_tokens_to_ids("<|assistant|>")
    ids = ids_of(chatglm3, "<|assistant|>get_weather\n {'city': '北京'}")
    assert ids == [role, *sp.encode("get_weather\n"), *sp.encode("{'city': '北京'}")]


def test_chatglm3_refuses_an_unknown_role(chatglm3: ChatGLMTokenizer) -> None:
    with pytest.raises(TemplateError, match="no role tool"):
        chatglm3.apply_chat_template([{"role": "tool", "content": "?"}], tokenize=False)


@pytest.mark.parametrize("instruction", [None, "Be brief."])
def test_training_sees_the_prompt_of_generation_and_learns_the_answer(
    tokenizer: ChatGLMTokenizer, sp: SentencePieceProcessor, instruction: str | None
) -> None:
    turns = tuple(Turn(item["role"], item["content"]) for item in TALK)
    example = Example((*turns, Turn("assistant", "喝牛奶。")), "a.jsonl", 1)
    template = Template(tokenizer, instruction=instruction)
    rendered = template.example(example)
    prompt, answer = template.prompt(turns), [*sp.encode("喝牛奶。"), 2]
    assert list(rendered.ids) == prompt + answer
    assert rendered.loss_mask[len(prompt) - 1 :] == (False, *[True] * len(answer))
    assert template.answer_ids("喝牛奶。") == answer
    # ChatGLM3's turns stand apart, so the first answer is learned too; ChatGLM2's rounds are one.
    both = "<|user|>" in tokenizer.get_vocab()
    assert template.marked(example).count("⟦") == (2 if both else 1)
    assert template.marked(example).endswith("⟦喝牛奶。</s>⟧")


@pytest.mark.parametrize("kind", ["plain", "{input} =>"])
def test_other_templates_begin_with_the_prefix_too(tokenizer: ChatGLMTokenizer, kind: str) -> None:
    prompt = Template(tokenizer, kind=kind).prompt("你好")
    assert prompt[:2] == tokenizer.prefix_tokens
    assert prompt.count(prompt[0]) == 1


def test_its_end_and_what_its_layout_writes_are_hidden_from_answers(
    tokenizer: ChatGLMTokenizer,
) -> None:
    template = Template(tokenizer)
    assert template.ends == {2}
    assert template.stops == ()
    roles = (
        ("<|system|>", "<|user|>", "<|assistant|>") if "<|user|>" in tokenizer.get_vocab() else ()
    )
    written = {2, tokenizer.pad_token_id, *tokenizer.prefix_tokens}
    assert template.hidden == written | set(tokenizer.convert_tokens_to_ids(list(roles)))


def test_a_long_example_is_cut(tokenizer: ChatGLMTokenizer) -> None:
    example = Example((Turn("user", "你好" * 200), Turn("assistant", "你好")), "a.jsonl", 1)
    template = Template(tokenizer, max_tokens=60)
    rendered, answer = template.example(example), template.answer_ids("你好")
    assert rendered.truncated
    assert 58 <= len(rendered.ids) <= 60
    assert list(rendered.ids[-len(answer) :]) == answer
    assert sum(rendered.loss_mask) == len(answer)


def test_the_data_check_warns_of_control_tokens_only(chatglm3: ChatGLMTokenizer) -> None:
    def row(text: str) -> Example:
        return Example((Turn("user", text), Turn("assistant", "ok")), "a.jsonl", 1)

    def warned(text: str) -> bool:
        rows = Dataset("a.jsonl", "f", {}, (row(text),), (), (), "")
        return any("special token" in line for line in check(rows, Template(chatglm3)).warnings)

    assert warned("say <|assistant|>")
    assert warned("say </s>")
    assert not warned("people and Aesop")


def test_batches_are_padded_on_the_left(tokenizer: ChatGLMTokenizer) -> None:
    batch = tokenizer(["你好", "the parcel is on its way"], padding=True, return_tensors="pt")
    short, long = tokenizer.encode("你好"), tokenizer.encode("the parcel is on its way")
    padding = len(long) - len(short)
    assert padding > 0
    assert batch["input_ids"].tolist() == [[0] * padding + short, long]
    assert batch["attention_mask"].tolist() == [
        [0] * padding + [1] * len(short),
        [1] * len(long),
    ]


def test_copies_and_saved_ones_are_the_same(tokenizer: ChatGLMTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "chatglm"}', encoding="utf-8")
    for other in (
        copy.deepcopy(tokenizer),
        pickle.loads(pickle.dumps(tokenizer)),
        read_tokenizer(tmp_path),
    ):
        assert other.get_vocab() == tokenizer.get_vocab()
        assert other.chat_template == tokenizer.chat_template
        assert other.encode("你好</s>") == tokenizer.encode("你好</s>")


@pytest.mark.parametrize("generation", [2, 3])
def test_a_folder_says_which_it_is(write_chatglm: Callable[..., Path], generation: int) -> None:
    folder = write_chatglm(generation)
    assert len(read_tokenizer(folder)) == 420 + (5 if generation == 2 else 9)
