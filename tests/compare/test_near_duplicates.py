"""Held-out rows that nearly repeat a training row are found; rows of one template are not."""

import random
from collections.abc import Sequence

import pytest

from onebase.compare.near_duplicates import near_duplicates, near_duplicates_note
from onebase.compare.result import NearDuplicate
from onebase.data.example import Example, Turn
from onebase.language import set_language

QUESTIONS = [
    "How do I get my money back for a lamp that arrived broken?",
    "Which countries does the express parcel service deliver to?",
    "My card was declined twice at the supermarket this morning.",
    "Please tell me the opening hours of the shop on Sundays.",
    "这款针织连衣裙适合什么季节穿着？",
    "请问退货以后多久可以收到退款？",
    "我的订单已经三天没有更新物流信息了。",
]


def rows(texts: Sequence[str | tuple[str, str]], file: str) -> list[Example]:
    examples = []
    for line, text in enumerate(texts, 1):
        question, answer = (text, "label") if isinstance(text, str) else text
        turns = (Turn("user", question), Turn("assistant", answer))
        examples.append(Example(turns, file, line))
    return examples


@pytest.mark.parametrize("index", range(len(QUESTIONS)))
@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text,
        lambda text: text.upper(),
        lambda text: f"  {text.replace(' ', '   ')} !",
        lambda text: text.replace("？", "").replace("。", "").replace("?", "").replace(".", ""),
    ],
)
def test_the_same_but_for_case_spaces_and_punctuation(index: int, edit: object) -> None:
    assert callable(edit)
    held_out = rows([edit(QUESTIONS[index])], "held")
    [found] = near_duplicates(held_out, rows(QUESTIONS, "train"), "classification")
    assert found == NearDuplicate("held:1", f"train:{index + 1}", 1.0)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("How do I get my money back for the lamp that arrived broken?", 1),
        ("Hello, which countries does the express parcel service deliver to?", 2),
        ("Please tell me the opening hours of your shop on Sundays", 4),
        ("请问，退货后多久可以收到退款？", 6),
    ],
)
def test_a_word_more_less_or_other(text: str, line: int) -> None:
    [found] = near_duplicates(rows([text], "held"), rows(QUESTIONS, "train"), "classification", 0.7)
    assert found.training == f"train:{line}"
    assert 0.7 <= found.similarity < 1


def test_other_questions_are_none() -> None:
    held_out = rows(
        [
            "How do I get a receipt for a chair that I bought?",
            "Which currencies does the app support?",
            "这款衬衫有哪些颜色？",
            "",
            "😀",
        ],
        "held",
    )
    assert near_duplicates(held_out, rows(QUESTIONS, "train"), "classification") == ()


def test_the_nearest_row_stands_for_the_others_and_the_most_similar_come_first() -> None:
    training = rows([QUESTIONS[0], QUESTIONS[1] + " Thanks", QUESTIONS[1], QUESTIONS[1]], "train")
    held_out = rows(["Hello! " + QUESTIONS[0], QUESTIONS[1]], "held")
    found = near_duplicates(held_out, training, "classification")
    assert [(pair.held_out, pair.training) for pair in found] == [
        ("held:2", "train:3"),
        ("held:1", "train:1"),
    ]


def test_texts_too_short_for_an_n_gram() -> None:
    held_out = rows(["hi", "好", "", "!"], "held")
    training = rows(["no", "", "好", "ho", "Hi."], "train")
    found = near_duplicates(held_out, training, "classification")
    assert {(pair.held_out, pair.training) for pair in found} == {
        ("held:1", "train:5"),
        ("held:2", "train:3"),
        ("held:3", "train:2"),
    }


@pytest.mark.parametrize(
    ("answer", "similar"),
    [
        ("It was painted in 1642 by Rembrandt, and hangs in Amsterdam.", True),
        ("I can't tell you anything about art, but do ask me about music.", False),
    ],
)
def test_in_a_generation_set_the_answers_count_too(answer: str, similar: bool) -> None:
    painted = "It was painted in 1642 by Rembrandt and hangs in Amsterdam!"
    training = rows([("Who painted the Night Watch?", painted)], "t")
    held_out = rows([("Who painted the Night Watch then?", answer)], "h")
    assert len(near_duplicates(held_out, training, "classification", 0.7)) == 1
    assert bool(near_duplicates(held_out, training, "generation", 0.7)) == similar


def test_the_same_input_is_a_duplicate_whatever_the_answers() -> None:
    training = rows([("类型#上衣*颜色#白色", "一件白色上衣。")], "t")
    held_out = rows([("类型#上衣*颜色#白色", "简约的设计非常百搭。")], "h")
    [found] = near_duplicates(held_out, training, "generation")
    assert found.similarity == 1.0


def test_all_turns_before_the_answer_count() -> None:
    def talk(first: str, file: str) -> Example:
        turns = (Turn("user", first), Turn("assistant", "I see."), Turn("user", "And now?"))
        return Example((*turns, Turn("assistant", "label")), file, 1)

    one, other = talk("My lamp is broken since yesterday.", "h"), talk("I lost my card.", "t")
    assert near_duplicates([one], [other], "classification") == ()
    assert len(near_duplicates([one], [talk(one.turns[0].content, "t")], "classification")) == 1


def test_rows_of_a_template_are_not_duplicates() -> None:
    """Inputs that differ in one of four values, with answers of their own."""
    chosen = random.Random(0)
    names = [
        "The Punter",
        "Blue Spice",
        "Cotto",
        "The Mill",
        "Aromi",
        "Zizzi",
        "Strada",
        "Alimentum",
    ]
    texts = [
        (
            f"name[{name}], food[{food}], area[{area}], price[{price}]",
            " ".join(
                chosen.choices(
                    [
                        "cheap",
                        "river",
                        "dinner",
                        "serves",
                        "pleasant",
                        "near",
                        "quiet",
                        "lively",
                        "rated",
                        "family",
                        "coffee",
                        "evening",
                        "lunch",
                        "terrace",
                        "wine",
                    ],
                    k=12,
                )
            ),
        )
        for name in names
        for food in ("Italian", "French", "Chinese", "Indian")
        for area in ("riverside", "city centre", "suburb")
        for price in ("low", "high", "moderate")
    ]
    chosen.shuffle(texts)
    found = near_duplicates(rows(texts[:60], "h"), rows(texts[60:], "t"), "generation")
    assert len(found) <= 1


def test_nothing_against_nothing() -> None:
    one = rows(["text"], "t")
    assert near_duplicates([], one, "generation") == near_duplicates(one, [], "generation") == ()


PAIRS = [NearDuplicate(f"h:{at}", f"t:{at}", 1.0 if at == 0 else 0.9999) for at in range(5)]


def test_the_note() -> None:
    note = near_duplicates_note(PAIRS, 40)
    assert note.startswith("5 of 40 held-out rows nearly repeat a training row")
    assert "h:0 and t:0 (1.00); h:1 and t:1 (0.99); h:2 and t:2 (0.99); …" in note
    assert near_duplicates_note(PAIRS[:1], 40).startswith("1 of 40 held-out rows nearly repeats")
    assert near_duplicates_note([], 40) == ""
    set_language("zh")
    assert "40 行留出数据中有 5 行" in near_duplicates_note(PAIRS, 40)
