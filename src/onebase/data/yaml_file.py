"""A user's YAML file, read as YAML 1.1, except that a repeated key is an error."""

from pathlib import Path
from typing import Any

import yaml

from onebase.errors import UsageError
from onebase.language import say


def read_yaml(path: Path) -> Any:
    """The content of a user's YAML file. Raises UsageError if it can't be read, is not YAML, or has a key
    twice in one mapping.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8-sig"), _UniqueKeys)
    except OSError as error:
        raise UsageError(
            say(f"{path} can't be read: {error.strerror}.", f"无法读取 {path}：{error.strerror}。"),
            say("Check the path.", "请检查路径。"),
        ) from error
    except _TwiceError as twice:
        raise UsageError(
            say(
                f"{path}:{twice.line} has the key {twice.key!r} again; it stands in line "
                f"{twice.first} already.",
                f"{path}:{twice.line} 中的键 {twice.key!r} 重复：第 {twice.first} 行已有该键。",
            ),
            _remedy(twice.key),
        ) from twice
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(
            say(f"{path} is not YAML: {error}", f"{path} 不是有效的 YAML：{error}"),
            say("Correct the line it names.", "请修正所指的行。"),
        ) from error


def _remedy(key: str) -> str:
    if key == "jobs":
        return say(
            "Write all jobs as one list under one jobs:.", "请把所有任务写进同一个 jobs: 列表。"
        )
    return say("Keep one of them.", "请只保留其中一个。")


class _TwiceError(yaml.YAMLError):
    """A key that appears twice in one mapping, and the lines of both."""

    def __init__(self, key: str, first: int, line: int) -> None:
        super().__init__(key)
        self.key = key
        self.first = first
        self.line = line


class _UniqueKeys(yaml.SafeLoader):
    """The safe loader, which raises _TwiceError for a repeated key."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node."""
        lines: dict[object, int] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag.endswith(":merge"):
                continue
            key = self.construct_object(key_node)
            line = key_node.start_mark.line + 1
            if key in lines:
                raise _TwiceError(key_node.value, lines[key], line)
            lines[key] = line
        return super().construct_mapping(node, deep)
