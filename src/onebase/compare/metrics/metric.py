"""The metrics of a comparison: name, unit, and which way is better."""

from dataclasses import KW_ONLY, dataclass
from typing import Literal

EnglishChinese = tuple[str, str]
Better = Literal["higher", "lower", "neither"]

_FRACTION = ("0 to 1", "0 到 1")
_PERCENT = ("0 to 100", "0 到 100")


@dataclass(frozen=True)
class Metric:
    """One metric; `title`, `unit` and `description` in English and in Chinese. It is measured row by row
    and averaged, or over a `whole_set` alone.
    """

    name: str
    better: Better
    _: KW_ONLY
    title: EnglishChinese
    unit: EnglishChinese
    description: EnglishChinese
    whole_set: bool = False


METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            "loss",
            "lower",
            title=("loss", "损失"),
            unit=("nats per token", "奈特/词元"),
            description=(
                "The mean negative log likelihood of the reference's tokens; for classification, of the "
                "label's tokens.",
                "参考答案各词元的平均负对数似然；分类任务中为标签词元的平均负对数似然。",
            ),
        ),
        Metric(
            "perplexity",
            "lower",
            title=("perplexity", "困惑度"),
            unit=("1 or more", "不小于 1"),
            description=("exp(loss) over the whole set.", "整个数据集上的 exp(损失)。"),
            whole_set=True,
        ),
        Metric(
            "accuracy",
            "higher",
            title=("accuracy", "准确率"),
            unit=_FRACTION,
            description=(
                "The share of rows whose most likely label is the right one.",
                "最可能的标签正确的行所占的比例。",
            ),
        ),
        Metric(
            "macro_f1",
            "higher",
            title=("macro-F1", "宏平均 F1"),
            unit=_FRACTION,
            description=(
                "The mean of the labels' F1. A label that is neither a reference nor an answer in the set "
                "is left out.",
                "各标签 F1 的平均值；数据中既未作为参考、也未被预测的标签不计入。",
            ),
            whole_set=True,
        ),
        Metric(
            "exact_match",
            "higher",
            title=("exact match", "完全匹配"),
            unit=_FRACTION,
            description=(
                "1 if the answer is the reference, else 0; differences in white space and in Unicode's "
                "composed forms do not count.",
                "回答与参考答案相同为 1，否则为 0；忽略空白差异和 Unicode 组合形式的差异。",
            ),
        ),
        Metric(
            "rouge_l",
            "higher",
            title=("ROUGE-L", "ROUGE-L"),
            unit=_PERCENT,
            description=(
                "F1 of the longest common subsequence of words, as in rouge_score. Case and punctuation "
                "do not count; Chinese is segmented by jieba.",
                "词的最长公共子序列的 F1，由 rouge_score 计算；忽略大小写和标点，中文用 jieba 分词。",
            ),
        ),
        Metric(
            "bleu_4",
            "higher",
            title=("BLEU-4", "BLEU-4"),
            unit=_PERCENT,
            description=(
                "The mean of the rows' sentence BLEU with up to 4-grams, by sacrebleu with effective "
                "order. Its tokenizer is zh (single characters) where the references are Chinese, else "
                "13a.",
                "各行句子级 BLEU（最多 4 元）的平均值，由 sacrebleu 计算（effective order）；"
                "参考答案为中文时按字切分（zh），否则使用 13a 分词。",
            ),
        ),
        Metric(
            "chrf",
            "higher",
            title=("chrF", "chrF"),
            unit=_PERCENT,
            description=(
                "The mean of the rows' chrF, the F2 of n-grams of 1 to 6 characters, by sacrebleu.",
                "各行 chrF 的平均值，即 1 到 6 元字符 n-gram 的 F2，由 sacrebleu 计算。",
            ),
        ),
        Metric(
            "length",
            "neither",
            title=("length", "长度"),
            unit=("characters", "字符"),
            description=(
                "The characters of the answer, without white space at its ends.",
                "回答的字符数，不计首尾空白。",
            ),
        ),
        Metric(
            "corpus_bleu_4",
            "higher",
            title=("corpus BLEU-4", "语料级 BLEU-4"),
            unit=_PERCENT,
            description=(
                "BLEU of the whole set, from the sums of its n-gram counts, as papers report it.",
                "由整个数据集的 n-gram 计数之和算出的 BLEU，即论文中通常报告的数值。",
            ),
            whole_set=True,
        ),
        Metric(
            "corpus_chrf",
            "higher",
            title=("corpus chrF", "语料级 chrF"),
            unit=_PERCENT,
            description=(
                "chrF of the whole set, from the sums of its n-gram counts.",
                "由整个数据集的 n-gram 计数之和算出的 chrF。",
            ),
            whole_set=True,
        ),
    )
}
