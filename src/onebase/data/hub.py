"""A data set on the Hugging Face Hub: which of its files to read, and fetching them."""

import fnmatch
from pathlib import Path, PurePosixPath
from shlex import quote

from onebase.data.network import environment_fault, failure
from onebase.errors import DataError
from onebase.language import say

READABLE = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv")
# Metadata that Hub repositories carry beside their data.
NOT_DATA = {"dataset_infos.json", "dataset_dict.json", "state.json", "metadata.json"}


def fetch(name: str) -> list[Path]:
    """The files of the data set `name` (`owner/name`), from the Hub or else from its cache.

    Raises `DataError` where the Hub can't be reached and nothing is cached, where there is no
    such data set, and where it is not clear which files are meant.
    """
    fault = environment_fault()
    if fault is not None:
        return _cached(name, None, fault)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        HTTPError,  # a proxy's failure arrives as this, bare
    )

    patterns = [f"*{ending}" for ending in READABLE]
    try:
        listed = snapshot_download(name, repo_type="dataset", allow_patterns=patterns, dry_run=True)
        chosen = choose(name, [file.filename for file in listed])
        folder = Path(snapshot_download(name, repo_type="dataset", allow_patterns=chosen))
    except (OSError, HTTPError, RuntimeError) as problem:  # RuntimeError: the Hub's Xet storage
        return _cached(name, problem, failure(problem))
    return [folder / file for file in chosen]


def choose(name: str, files: list[str]) -> list[str]:
    """Of a repository's files those to read: one kind, one folder, the training split if named."""
    data = [file for file in files if PurePosixPath(file).name not in NOT_DATA]
    by_kind = [[file for file in data if file.lower().endswith(kind)] for kind in READABLE]
    kind = next((found for found in by_kind if found), None)
    if kind is None:
        raise DataError(
            say(
                f"The data set {name!r} holds no file that can be read.",
                f"数据集 {name!r} 中没有可读取的文件。",
            ),
            say(f"Readable: {', '.join(READABLE)}.", f"可读取：{', '.join(READABLE)}。"),
        )
    chosen = sorted([file for file in kind if "train" in file.lower()] or kind)
    folders = sorted({str(PurePosixPath(file).parent) for file in chosen})
    if len(folders) > 1:
        raise DataError(
            say(
                f"The data set {name!r} has several parts: {', '.join(folders)}.",
                f"数据集 {name!r} 含有多个部分：{', '.join(folders)}。",
            ),
            say(
                f"Fetch one with `hf download --repo-type dataset {name} {quote(chosen[0])}` "
                "and give the file.",
                f"请用 `hf download --repo-type dataset {name} {quote(chosen[0])}` "
                "取得其中一个，再指定该文件。",
            ),
        )
    return chosen


def _cached(name: str, problem: Exception | None, told: tuple[str, str]) -> list[Path]:
    """The data set's files in the Hub's cache. Raises DataError with the cause and remedy `told`."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    cause = None if problem is None else problem.__cause__ or problem
    if isinstance(cause, RepositoryNotFoundError):  # a gated one too
        raise DataError(
            say(
                f"There is no file {name!r}, and no data set of that name on the Hub that you "
                "may read.",
                f"没有文件 {name!r}，Hub 上也没有可供读取的同名数据集。",
            ),
            say(
                "Check the name; a private or gated data set needs `hf auth login`.",
                "请检查名称；私有或受限的数据集需先运行 `hf auth login`。",
            ),
        ) from problem
    # Only what `choose` once chose is complete in the cache, so ask for that, kind by kind.
    for pattern in [f"*{split}{kind}" for kind in READABLE for split in ("train*", "")]:
        try:
            folder = snapshot_download(
                name, repo_type="dataset", allow_patterns=[pattern], local_files_only=True
            )
        except (OSError, RuntimeError):  # RuntimeError: no home folder
            continue
        files = [path.relative_to(folder).as_posix() for path in Path(folder).rglob("*")]
        if found := fnmatch.filter(files, pattern):
            return [Path(folder, file) for file in choose(name, found)]
    reason, remedy = told
    raise DataError(
        say(
            f"There is no file {name!r}, and the Hub data set {name!r} can't be fetched: {reason}.",
            f"没有文件 {name!r}，也无法从 Hub 取得数据集 {name!r}：{reason}。",
        ),
        say("If a file is meant, check its path. ", "若指本地文件，请检查路径。") + remedy,
    ) from problem
