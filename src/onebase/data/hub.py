"""Data sets on the Hugging Face Hub: choosing the files to read and downloading them."""

import fnmatch
from pathlib import Path, PurePosixPath
from shlex import quote

from onebase.data.network import environment_fault, failure
from onebase.errors import DataError
from onebase.language import say

READABLE = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv")
# Metadata files in Hub repositories.
NOT_DATA = {"dataset_infos.json", "dataset_dict.json", "state.json", "metadata.json"}


def fetch(name: str) -> list[Path]:
    """The files of the data set `name` (`owner/name`), from the Hub or from its cache.

    Raises `DataError` if the Hub can't be reached and nothing is cached, if there is no such data set,
    and if it is not clear which files to read.
    """
    fault = environment_fault()
    if fault is not None:
        return _cached(name, None, fault)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    patterns = [f"*{ending}" for ending in READABLE]
    try:
        listed = snapshot_download(name, repo_type="dataset", allow_patterns=patterns, dry_run=True)
        chosen = choose(name, [file.filename for file in listed])
        folder = Path(snapshot_download(name, repo_type="dataset", allow_patterns=chosen))
    # HTTPError is raised as it is when a proxy fails, RuntimeError by the Hub's Xet storage.
    except (OSError, HTTPError, RuntimeError) as problem:
        return _cached(name, problem, failure(problem))
    return [folder / file for file in chosen]


def choose(name: str, files: list[str]) -> list[str]:
    """The files to read: of one type and one folder, those of the training split if there are any."""
    data = [file for file in files if PurePosixPath(file).name not in NOT_DATA]
    by_type = [[file for file in data if file.lower().endswith(ending)] for ending in READABLE]
    readable = next((files for files in by_type if files), None)
    if readable is None:
        raise DataError(
            say(
                f"The data set {name!r} has no readable file.",
                f"数据集 {name!r} 中没有可读取的文件。",
            ),
            say(
                f"Readable types: {', '.join(READABLE)}.", f"可读取的类型：{', '.join(READABLE)}。"
            ),
        )
    chosen = sorted([file for file in readable if "train" in file.lower()] or readable)
    folders = sorted({str(PurePosixPath(file).parent) for file in chosen})
    if len(folders) > 1:
        raise DataError(
            say(
                f"The data set {name!r} has several parts: {', '.join(folders)}.",
                f"数据集 {name!r} 含有多个部分：{', '.join(folders)}。",
            ),
            say(
                f"Download one with `hf download --repo-type dataset {name} {quote(chosen[0])}` "
                "and give that file.",
                f"请用 `hf download --repo-type dataset {name} {quote(chosen[0])}` "
                "取得其中一个，再指定该文件。",
            ),
        )
    return chosen


def _cached(name: str, problem: Exception | None, fault: tuple[str, str]) -> list[Path]:
    """The data set's files in the Hub's cache. Raises DataError with the cause and remedy of `fault`."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    cause = None if problem is None else problem.__cause__ or problem
    if isinstance(cause, RepositoryNotFoundError):  # also for a gated one
        raise DataError(
            say(
                f"The file {name!r} does not exist, and the Hub has no data set of that name that you can "
                "access.",
                f"没有文件 {name!r}，Hub 上也没有可访问的同名数据集。",
            ),
            say(
                "Check the name; a private or gated data set needs `hf auth login`.",
                "请检查名称；私有或受限的数据集需先运行 `hf auth login`。",
            ),
        ) from problem
    # Only the files that `choose` once chose are complete in the cache, so ask for them by type.
    for pattern in [f"*{split}{kind}" for kind in READABLE for split in ("train*", "")]:
        try:
            folder = snapshot_download(
                name, repo_type="dataset", allow_patterns=[pattern], local_files_only=True
            )
        except (OSError, RuntimeError):  # RuntimeError: no home folder
            continue
        files = [path.relative_to(folder).as_posix() for path in Path(folder).rglob("*")]
        if cached := fnmatch.filter(files, pattern):
            return [Path(folder, file) for file in choose(name, cached)]
    reason, remedy = fault
    raise DataError(
        say(
            f"The file {name!r} does not exist, and the Hub data set {name!r} can't be downloaded: {reason}.",
            f"没有文件 {name!r}，也无法从 Hub 下载数据集 {name!r}：{reason}。",
        ),
        say("If you mean a local file, check its path. ", "若指本地文件，请检查路径。") + remedy,
    ) from problem
