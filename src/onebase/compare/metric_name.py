"""The metrics and the languages of neutral text as people name them."""

from onebase.compare.result import LOWER_IS_BETTER, NEUTRAL
from onebase.language import say

_NAMES = {
    "accuracy": ("accuracy", "准确率"),
    "macro_f1": ("macro-F1", "宏平均 F1"),
    "exact_match": ("exact match", "完全匹配"),
    "rouge_l": ("ROUGE-L", "ROUGE-L"),
    "bleu": ("BLEU-4", "BLEU-4"),
    "bleu4": ("BLEU-4", "BLEU-4"),
    "bleu_4": ("BLEU-4", "BLEU-4"),
    "chrf": ("chrF", "chrF"),
    "length": ("length", "长度"),
    "loss": ("loss", "损失"),
    "perplexity": ("perplexity", "困惑度"),
}
_TONGUES = {"en": ("English", "英文"), "zh": ("Chinese", "中文")}


def metric_name(metric: str) -> str:
    """The metric in the current language; a metric of the user's as it was given."""
    names = _NAMES.get(metric)
    return say(*names) if names else metric


def direction_note(metric: str) -> str:
    """Which values of the metric are better, in brackets."""
    if metric in NEUTRAL:
        return ""
    if metric in LOWER_IS_BETTER:
        return say(" (lower is better)", "（越低越好）")
    return say(" (higher is better)", "（越高越好）")


def tongue_name(code: str) -> str:
    """The language of a neutral text."""
    names = _TONGUES.get(code)
    return say(*names) if names else code
