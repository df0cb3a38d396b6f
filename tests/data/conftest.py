"""Small real tokenizers, and files written in place."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LINES = [
    "Where is my parcel? It left the depot and will be with you on Monday.",
    "system user assistant Answer as the shop's support desk. Input: Output:",
    "简约而不简单的牛仔外套，白色的衣身十分百搭。类型#上衣*材质#牛仔布*颜色#白色",
]
Write = Callable[[str, object], Path]


def build_tokenizer(
    chat_template: str | None = None, *, adds_bos: bool = False
) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(LINES, trainer)
    if adds_bos:
        bpe.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", bpe.token_to_id("<s>"))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="<|im_end|>" if chat_template else "<|endoftext|>",
    )
    tokenizer.chat_template = chat_template
    return tokenizer


@pytest.fixture(scope="session")
def chatml() -> PreTrainedTokenizerFast:
    return build_tokenizer(CHATML)


@pytest.fixture(scope="session")
def no_system() -> PreTrainedTokenizerFast:
    return build_tokenizer(NO_SYSTEM)


@pytest.fixture(scope="session")
def base() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture(scope="session")
def base_with_bos() -> PreTrainedTokenizerFast:
    return build_tokenizer(adds_bos=True)


@pytest.fixture(scope="session")
def tokenizer_with() -> Callable[[str], PreTrainedTokenizerFast]:
    """A tokenizer with a chat template of its own."""
    return build_tokenizer


@pytest.fixture(scope="session")
def chatml_but() -> Callable[[str, str], PreTrainedTokenizerFast]:
    """A tokenizer whose ChatML has one stretch put in place of another."""

    def build(old: str, new: str) -> PreTrainedTokenizerFast:
        assert old in CHATML
        return build_tokenizer(CHATML.replace(old, new))

    return build


@pytest.fixture(autouse=True)
def _english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write text, bytes or (as JSON lines) a list into the working folder."""
    monkeypatch.chdir(tmp_path)

    def write_file(name: str, content: object) -> Path:
        path = Path(name)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content, encoding="utf-8", newline="")
        else:
            assert isinstance(content, list)
            lines = [json.dumps(row, ensure_ascii=False) for row in content]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write_file
