"""The training methods by name: what each learns, its options, its builder and its defaults."""

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from torch import nn

from onebase.adapters.adapter import Adapter
from onebase.adapters.builders import (
    build_full,
    build_ia3,
    build_lora,
    build_p_tuning,
    build_p_tuning_v2,
    build_prompt_tuning,
    build_qlora,
)
from onebase.adapters.full import FULL, FullOptions
from onebase.adapters.ia3 import Ia3Options
from onebase.adapters.lora import LoraOptions
from onebase.adapters.prefix import PTuningV2Options
from onebase.adapters.prompt import PromptTuningOptions, PTuningOptions
from onebase.errors import UsageError, unknown
from onebase.language import say
from onebase.model.base import Base

Options = TypeVar("Options", bound=BaseModel)
EnglishChinese = tuple[str, str]


@dataclass(frozen=True)
class Method:
    """One method: the type of its options, its builder, which `part` of an adapter it builds, and
    its default learning rate.

    `summary` says what it learns, `paper` where it comes from, and `not_for` when to choose
    another method; each in English and in Chinese. Every field of `options` has a description in
    English, and one in Chinese under `json_schema_extra["zh"]`.

    `beta2` is AdamW's. Virtual tokens start with gradients many times those that follow, and with
    .999 the average of their squares would keep the steps small for all of a short training.
    """

    options: type[BaseModel]
    build: Callable[[Base, Any, str], nn.Module]
    part: str
    learning_rate: float
    beta2: float = 0.999
    _: KW_ONLY
    summary: EnglishChinese
    paper: EnglishChinese
    not_for: EnglishChinese


def build_adapter(
    base: Base,
    method: str,
    settings: Mapping[str, Any],
    *,
    init_text: str,
    seed: int,
    leading: int = 0,
    placed: int = 0,
) -> Adapter:
    """A new adapter for `base`; the same `seed` gives the same initial weights.

    `method` is one method, or several joined by `+`. Where a template marks virtual tokens,
    `leading` of them stand before the text and `placed` inside it. Raises UsageError for an
    unknown method, an invalid setting, methods that can't be combined, marks that don't match the
    virtual tokens, or a base in w8a8, which can't be trained.
    """
    methods = parts_of(method)
    require_trainable(base)
    settings_of, unused = settings_by_method(method, settings)
    for key in unused:
        known = {field for name in methods for field in METHODS[name].options.model_fields}
        raise unknown("setting", "设置项", key, known)
    if leading + placed:
        _mark(method, settings_of, leading + placed)
    parts: dict[str, Any] = {}
    options = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in methods:
            selected = METHODS[name]
            parsed = parse_options(selected.options, settings_of[name])
            parts[selected.part] = selected.build(base, parsed, init_text)
            options[name] = parsed.model_dump()
    adapter = Adapter(
        "+".join(methods),
        options[methods[0]] if len(methods) == 1 else options,
        placed=placed,
        **parts,
    )
    return adapter.to(base.device)


def require_trainable(base: Base) -> None:
    """Raise UsageError for a base in w8a8, on which no adapter can be trained."""
    if base.precision.name == "w8a8":
        raise UsageError(
            say(
                f"{base.name} is in precision w8a8, which can answer but not be trained.",
                f"{base.name} 的精度为 w8a8，只能用于回答，不能训练。",
            ),
            say("Train with --precision fp32 or int8.", "请用 --precision fp32 或 int8 训练。"),
        )


def _mark(method: str, settings_of: dict[str, dict[str, Any]], marked_tokens: int) -> None:
    """Set `virtual_tokens` to the number that the template marks, or check it against that."""
    for name, settings in settings_of.items():
        if METHODS[name].part == "prompt":
            virtual_tokens = settings.setdefault("virtual_tokens", marked_tokens)
            if virtual_tokens == marked_tokens:
                return
            raise UsageError(
                say(
                    f"virtual_tokens={virtual_tokens!r}, but the template marks {marked_tokens}.",
                    f"virtual_tokens={virtual_tokens!r}，但模板中标记了 {marked_tokens} 个虚拟词元。",
                ),
                say("Give only one of the two.", "请只保留其中之一。"),
            )
    raise UsageError(
        say(
            f"The template marks virtual tokens, but {method} has none.",
            f"模板中标记了虚拟词元，但 {method} 没有虚拟词元。",
        ),
        say(
            "Use prompt-tuning or p-tuning (for example lora+p-tuning), or remove {v:…} from the "
            "template.",
            "请使用 prompt-tuning 或 p-tuning（例如 lora+p-tuning），或从模板中去掉 {v:…}。",
        ),
    )


def canonical_method(name: str) -> str:
    """`name` without aliases, its methods in the order of METHODS. Raises UsageError."""
    return "+".join(parts_of(name))


def parts_of(name: str) -> tuple[str, ...]:
    """The methods that `name` joins by `+`, in the order of METHODS.

    Raises UsageError for an unknown method, and for two that build the same part of an adapter.
    """
    names = [ALIASES.get(part.strip(), part.strip()) for part in name.split("+")]
    for part in names:
        if part not in METHODS:
            raise unknown("method", "方法", part, [*METHODS, *ALIASES])
    for index, part in enumerate(names):
        for other in names[:index]:
            if METHODS[part].part == METHODS[other].part or FULL in (part, other):
                raise UsageError(
                    say(
                        f"{name}: {other} and {part} can't be combined; an adapter has only one of them.",
                        f"{name}：{other} 与 {part} 不能组合，一个适配器只能使用其中之一。",
                    ),
                    say(
                        "Combine methods of different kinds, such as lora+p-tuning+p-tuning-v2.",
                        "请组合不同类型的方法，例如 lora+p-tuning+p-tuning-v2。",
                    ),
                )
    return tuple(sorted(names, key=list(METHODS).index))


def settings_by_method(
    method: str, settings: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The settings by method, and the settings that belong to no method.

    A key goes to every method that has such an option; `p-tuning.virtual_tokens` goes to p-tuning
    only. Raises UsageError for a prefix that is none of the methods, or an option that the method
    does not have.
    """
    names = parts_of(method)
    by_method: dict[str, dict[str, Any]] = {name: {} for name in names}
    unused = {}
    for key, value in settings.items():
        prefix, dot, field = key.rpartition(".")
        if dot:
            prefix = ALIASES.get(prefix, prefix)
            if prefix not in by_method:
                raise unknown("method in a setting", "设置项中的方法", key, names)
            if field not in METHODS[prefix].options.model_fields:
                raise unknown("setting", "设置项", key, METHODS[prefix].options.model_fields)
            by_method[prefix][field] = value
            continue
        methods = [name for name in names if key in METHODS[name].options.model_fields]
        for name in methods:
            by_method[name].setdefault(key, value)
        if not methods:
            unused[key] = value
    return by_method, unused


def parse_options(kind: type[Options], settings: Mapping[str, Any]) -> Options:
    """`settings` as options of type `kind`. Raises UsageError for an unknown or invalid one."""
    for key in settings:
        if key not in kind.model_fields:
            raise unknown("setting", "设置项", key, kind.model_fields)
    try:
        return kind.model_validate(dict(settings))
    except ValidationError as error:
        details = error.errors()[0]
        key = ".".join(str(part) for part in details["loc"][:1])
        value = settings.get(key)
        raise UsageError(
            say(f"{key}={value!r} is not valid.", f"{key}={value!r} 无效。"),
            say(f"{details['msg']}.", f"要求：{details['msg']}。"),
        ) from error


METHODS: dict[str, Method] = {
    FULL: Method(
        FullOptions,
        build_full,
        "full",
        learning_rate=5e-5,
        summary=(
            "Full fine-tuning: trains every weight of a copy of the base; the result is a base of "
            "its own.",
            "全量微调：训练基座副本的全部权重，结果本身就是一个基座。",
        ),
        paper=(
            "Common practice rather than one paper; for language models see Howard and Ruder 2018, "
            "Universal Language Model Fine-tuning for Text Classification, arXiv:1801.06146.",
            "属于通行做法，没有单一出处；语言模型可参见 Howard 和 Ruder，2018，"
            "Universal Language Model Fine-tuning for Text Classification，arXiv:1801.06146。",
        ),
        not_for=(
            "Not suited to little memory, many tasks or a quantized base: training SmolLM2-135M "
            "took 4,320 MB (LoRA: 1,804), each task is stored and served as a whole model, and "
            "int8 and nf4 are refused.",
            "不适合内存小、任务多或使用量化基座的情况：训练 SmolLM2-135M 占用 4,320 MB"
            "（LoRA 为 1,804 MB），每个任务都以完整模型保存和服务，且不支持 int8 和 nf4。",
        ),
    ),
    "lora": Method(
        LoraOptions,
        build_lora,
        "lora",
        learning_rate=2e-3,
        summary=(
            "LoRA: learns low-rank deltas on the linear layers; the first choice for most tasks.",
            "LoRA：学习线性层上的低秩增量，多数任务的首选。",
        ),
        paper=(
            "Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models, "
            "arXiv:2106.09685. Variants: rsLoRA, Kalajdzievski 2023, arXiv:2312.03732; "
            "DoRA, Liu et al. 2024, arXiv:2402.09353; LoRA+, Hayou et al. 2024, arXiv:2402.12354.",
            "Hu 等，2021，LoRA: Low-Rank Adaptation of Large Language Models，"
            "arXiv:2106.09685。变体：rsLoRA，Kalajdzievski，2023，arXiv:2312.03732；"
            "DoRA，Liu 等，2024，arXiv:2402.09353；LoRA+，Hayou 等，2024，arXiv:2402.12354。",
        ),
        not_for=(
            "Not suited to very small or very many adapters: at rank 8 on SmolLM2-135M one "
            "takes 9.8 MB, its training took 1,804 MB (p-tuning-v2: 1,445), and it loads in 31 "
            "ms (p-tuning-v2: 3).",
            "不适合要求适配器很小或数量很多的情况：SmolLM2-135M 上秩为 8 时，每个适配器 9.8 MB，"
            "训练占用 1,804 MB（p-tuning-v2 为 1,445 MB），加载需 31 毫秒（p-tuning-v2 为 3 毫秒）。",
        ),
    ),
    "qlora": Method(
        LoraOptions,
        build_qlora,
        "lora",
        learning_rate=2e-3,
        summary=(
            "QLoRA: LoRA on a frozen base held in 4-bit NormalFloat (nf4).",
            "QLoRA：在以 4 位 NormalFloat（nf4）保存的冻结基座上训练 LoRA。",
        ),
        paper=(
            "Dettmers et al. 2023, QLoRA: Efficient Finetuning of Quantized LLMs, "
            "arXiv:2305.14314.",
            "Dettmers 等，2023，QLoRA: Efficient Finetuning of Quantized LLMs，arXiv:2305.14314。",
        ),
        not_for=(
            "Not needed where the base fits in memory in floating point: nf4 rounds its "
            "weights, and the saving is the weights' alone (SmolLM2-135M: 370 MB of LoRA's "
            "1,804).",
            "基座能以浮点精度放进内存时不必使用：nf4 会舍入权重，而且只节省权重本身的内存"
            "（SmolLM2-135M 上，LoRA 的 1,804 MB 中省 370 MB）。",
        ),
    ),
    "ia3": Method(
        Ia3Options,
        build_ia3,
        "ia3",
        learning_rate=1e-2,
        summary=(
            "IA3: learns vectors that rescale keys, values and the inner activations of the "
            "feed-forward layers.",
            "IA3：学习缩放键、值和前馈层内部激活的向量。",
        ),
        paper=(
            "Liu et al. 2022, Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than "
            "In-Context Learning, arXiv:2205.05638.",
            "Liu 等，2022，Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than "
            "In-Context Learning，arXiv:2205.05638。",
        ),
        not_for=(
            "Not suited to bases without k_proj, v_proj and down_proj, nor to tasks far from "
            "what the base can do: it only rescales what is there (57,600 numbers on "
            "SmolLM2-135M). Its quality has not been measured in this project.",
            "不适合没有 k_proj、v_proj 和 down_proj 的基座，也不适合与基座已有能力相差较远的任务："
            "它只缩放已有的激活（SmolLM2-135M 上共 57,600 个参数）。本项目尚未测量其效果。",
        ),
    ),
    "prompt-tuning": Method(
        PromptTuningOptions,
        build_prompt_tuning,
        "prompt",
        learning_rate=3e-2,
        beta2=0.95,
        summary=(
            "Prompt tuning: learns the embeddings of virtual tokens before the text or in it.",
            "提示微调：学习位于文本之前或之中的虚拟词元的嵌入。",
        ),
        paper=(
            "Lester et al. 2021, The Power of Scale for Parameter-Efficient Prompt Tuning, "
            "arXiv:2104.08691.",
            "Lester 等，2021，The Power of Scale for Parameter-Efficient Prompt Tuning，"
            "arXiv:2104.08691。",
        ),
        not_for=(
            "Not suited to small bases and short trainings: on SNIPS with SmolLM2-135M it "
            "reached .843 in 5 epochs (LoRA: .971), and .914 only with 8 epochs, batches of 4 "
            "and 50 tokens. It can't be merged into the base or exported to GGUF.",
            "不适合小基座和短时间训练：在 SNIPS 上用 SmolLM2-135M 训练 5 轮只达到 .843"
            "（LoRA 为 .971），8 轮、批大小 4、50 个虚拟词元才达到 .914。"
            "不能合并到基座，也不能导出为 GGUF。",
        ),
    ),
    "p-tuning": Method(
        PTuningOptions,
        build_p_tuning,
        "prompt",
        learning_rate=1e-2,
        summary=(
            "P-tuning: learns virtual tokens through a prompt encoder; only its output is kept.",
            "P-tuning：通过提示编码器学习虚拟词元，最后只保留编码器的输出。",
        ),
        paper=(
            "Liu et al. 2021, GPT Understands, Too, arXiv:2103.10385. Starting from a text: "
            "Razdaibiedina et al. 2023, Residual Prompt Tuning, arXiv:2305.03937.",
            "Liu 等，2021，GPT Understands, Too，arXiv:2103.10385。从文本开始的做法见 "
            "Razdaibiedina 等，2023，Residual Prompt Tuning，arXiv:2305.03937。",
        ),
        not_for=(
            "Not the choice where quality comes first: on SNIPS with SmolLM2-135M it reached "
            ".907 (p-tuning-v2: .957, LoRA: .971); on 300 rows of ADGEN with Gemma 3 270M it "
            "cut the loss by 5.7 % (LoRA: 12.8 %). It can't be merged into the base or exported "
            "to GGUF.",
            "效果优先时不宜使用：在 SNIPS 上用 SmolLM2-135M 训练为 .907"
            "（p-tuning-v2 为 .957，LoRA 为 .971），"
            "在 300 行 ADGEN 上用 Gemma 3 270M 训练，损失降低 5.7 %（LoRA 为 12.8 %）。"
            "不能合并到基座，也不能导出为 GGUF。",
        ),
    ),
    "p-tuning-v2": Method(
        PTuningV2Options,
        build_p_tuning_v2,
        "prefix",
        learning_rate=3e-2,
        summary=(
            "P-tuning v2, also called prefix tuning: learns keys and values that every decoder "
            "layer, or the chosen ones, attends to.",
            "P-tuning v2，又称前缀微调：学习供每一解码层（或所选各层）关注的键和值。",
        ),
        paper=(
            "Liu et al. 2022, P-Tuning v2: Prompt Tuning Can Be Comparable to Fine-tuning "
            "Universally Across Scales and Tasks, arXiv:2110.07602; Li and Liang 2021, "
            "Prefix-Tuning: Optimizing Continuous Prompts for Generation, arXiv:2101.00190.",
            "Liu 等，2022，P-Tuning v2: Prompt Tuning Can Be Comparable to Fine-tuning "
            "Universally Across Scales and Tasks，arXiv:2110.07602；Li 和 Liang，2021，"
            "Prefix-Tuning: Optimizing Continuous Prompts for Generation，arXiv:2101.00190。",
        ),
        not_for=(
            "Not suited to adapters that are to be merged into the base or exported to GGUF, "
            "nor to bases that cache something other than keys and values (DeepSeek). With 20 "
            "virtual tokens and 300 rows of ADGEN it cut Gemma 3 270M's loss by 7.0 % (LoRA: "
            "12.8 %).",
            "不适合需要合并到基座或导出为 GGUF 的适配器，也不支持缓存内容不是键和值的基座"
            "（如 DeepSeek）。在 300 行 ADGEN 上用 Gemma 3 270M 训练，20 个虚拟词元使损失降低 7.0 %"
            "（LoRA 为 12.8 %）。",
        ),
    ),
}
ALIASES = {"prefix-tuning": "p-tuning-v2"}
