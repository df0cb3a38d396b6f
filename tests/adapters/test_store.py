import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from onebase.adapters.store import AdapterStore, check_task_name
from onebase.adapters.workspace import Workspace
from onebase.errors import CorruptFileError, UsageError
from onebase.language import set_language

RECORD = {"method": "lora", "base": "smollm2-135m", "metrics": {"eval_loss": 1.5}}


@pytest.fixture(autouse=True)
def _english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(Workspace(tmp_path / "w"))


def weights(text: str = "weights") -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
        (folder / "adapter_model.safetensors").write_text(text)

    return write


def add(store: AdapterStore, task: str, times: int = 1, **options: Any) -> None:
    for _ in range(times):
        store.add(task, weights(), RECORD, **options)


def names(store: AdapterStore, task: str | None = None) -> list[str]:
    return [adapter.name for adapter in store.list(task)]


def damage(store: AdapterStore, task: str, version: int, text: str = '{"task": ') -> Path:
    folder = store.workspace.adapters / task / str(version)
    (folder / "onebase.json").write_text(text)
    return folder


def test_the_workspace_is_the_argument_then_the_environment_then_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ONEBASE_WORKSPACE", raising=False)
    assert Workspace().root == Path("workspace")
    monkeypatch.setenv("ONEBASE_WORKSPACE", "elsewhere")
    assert Workspace().root == Path("elsewhere")
    assert Workspace("here").adapters == Path("here/adapters")
    assert Workspace(tmp_path).runs == tmp_path / "runs"


def test_reading_creates_nothing(store: AdapterStore) -> None:
    assert store.list() == store.list("support") == []
    assert store.tasks() == []
    assert store.unlisted() == {}
    with pytest.raises(UsageError, match="none yet"):
        store.get("support")
    assert not store.workspace.root.exists()


def test_what_is_added_is_kept(store: AdapterStore) -> None:
    added = store.add("support", weights(), RECORD)
    assert added == store.get("support") == store.get("support@1") == store.list()[0]
    assert (added.task, added.version, added.current) == ("support", 1, True)
    assert added.path == store.workspace.adapters / "support" / "1"
    assert (added.method, added.base) == ("lora", "smollm2-135m")
    assert added.metrics == {"eval_loss": 1.5}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", added.created)
    assert added.bytes == sum(file.stat().st_size for file in added.path.iterdir())
    assert sorted(file.name for file in added.path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "onebase.json",
    ]
    record = json.loads((added.path / "onebase.json").read_text())
    assert record == added.record
    # printf weights | sha256sum
    assert record["sha256"] == "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"
    assert (added.path.parent / "current").read_text() == "1\n"


def test_the_store_s_own_keys_win(store: AdapterStore) -> None:
    added = store.add("support", weights(), {"task": "other", "version": 9, "sha256": "x"})
    assert (added.record["task"], added.record["version"]) == ("support", 1)
    store.verify(added)


def test_versions_are_listed_by_task_then_by_number(store: AdapterStore) -> None:
    add(store, "summary")
    add(store, "support", 11)
    assert store.tasks() == ["summary", "support"]
    assert names(store) == ["summary@1", *(f"support@{n}" for n in range(1, 12))]
    assert names(store, "support")[-1] == "support@11"
    assert [a.version for a in store.list("support") if a.current] == [11]
    assert names(store, "../adapters/support") == names(store, "other") == []


def test_a_version_may_be_added_without_becoming_current(store: AdapterStore) -> None:
    add(store, "support", promote=False)
    with pytest.raises(UsageError, match="'support' has no current version") as caught:
        store.get("support")
    assert "support@1" in caught.value.remedy
    store.promote("support@1")
    add(store, "support", promote=False)
    assert store.get("support").version == 1


@pytest.mark.parametrize("name", ["support", "客服", "a", "v1.2_x-y", "a" * 64, "摘要" * 32, "1"])
def test_good_names(store: AdapterStore, name: str) -> None:
    assert store.add(name, weights(), RECORD).task == name
    assert store.tasks() == [name]
    assert store.get(f"{name}@1") == store.get(name)


@pytest.mark.parametrize(
    "name", ["", "base", "a" * 65, "a@1", "a/b", "a\\b", ".a", "..", "a b", "a\n", "a:b", "客服！"]
)
def test_bad_names(store: AdapterStore, name: str) -> None:
    with pytest.raises(UsageError, match="can't be a task's name"):
        check_task_name(name)
    with pytest.raises(UsageError, match="can't be a task's name"):
        add(store, name)
    assert not store.workspace.root.exists()


def test_unknown_names_are_answered_with_the_known(store: AdapterStore) -> None:
    add(store, "support", 2)
    add(store, "客服")
    with pytest.raises(UsageError, match="Unknown task: 'suport'") as caught:
        store.get("suport")
    assert caught.value.remedy == "Did you mean 'support'? Valid: support, 客服."
    for name in ("support@3", "support@0", "support@01", "support@", "support@x", "support@1@1"):
        with pytest.raises(UsageError, match="Unknown version") as caught:
            store.get(name)
        assert "Valid: support@1, support@2." in caught.value.remedy
    for name in ("../support@1", "/etc@1", "@1", ""):
        with pytest.raises(UsageError, match="Unknown task"):
            store.get(name)
    for name in ("base", "base@1"):
        with pytest.raises(UsageError, match="base model without an adapter"):
            store.get(name)
    for act in (store.promote, store.remove):
        with pytest.raises(UsageError, match="Unknown version"):
            act("support@3")
    for change in (store.promote, store.remove, store.rollback):
        with pytest.raises(UsageError, match="Unknown task"):
            change("other")


def test_messages_speak_chinese(store: AdapterStore) -> None:
    set_language("zh")
    try:
        with pytest.raises(UsageError, match="不能用作任务名"):
            check_task_name("a/b")
        with pytest.raises(UsageError, match="未知的任务"):
            store.get("客服")
    finally:
        set_language("en")


@pytest.mark.parametrize("problem", [KeyboardInterrupt, OSError, UsageError("a", "b")])
def test_an_interruption_leaves_no_version(
    store: AdapterStore, problem: type[BaseException] | BaseException
) -> None:
    add(store, "support")

    def broken(folder: Path) -> None:
        (folder / "adapter_config.json").write_text("{}")
        raise problem

    kind = problem if isinstance(problem, type) else type(problem)
    for task in ("support", "new"):
        with pytest.raises(kind):
            store.add(task, broken, RECORD)
    assert names(store) == ["support@1"]
    assert store.tasks() == ["support"]
    assert store.get("support").version == 1
    folder = store.workspace.adapters / "support"
    assert not list(folder.glob(".*.partial"))
    assert store.add("support", weights(), RECORD).version == 2


def test_a_record_that_is_no_json_leaves_no_version(store: AdapterStore) -> None:
    with pytest.raises(TypeError):
        store.add("support", weights(), {"data": Path("a")})
    with pytest.raises(FileNotFoundError):
        store.add("support", lambda folder: None, RECORD)
    assert store.list() == []
    assert store.unlisted() == {}


def test_what_a_killed_process_left_is_no_version_and_is_cleared(store: AdapterStore) -> None:
    add(store, "support")
    left = store.workspace.adapters / "support" / ".2.partial"
    left.mkdir()
    (left / "adapter_config.json").write_text("{}")
    assert names(store) == ["support@1"]
    assert store.unlisted() == {}
    assert store.add("support", weights(), RECORD).version == 2
    assert not left.exists()


def test_versions_are_never_given_twice(store: AdapterStore) -> None:
    add(store, "support", 3)
    store.remove("support@3")
    assert store.add("support", weights(), RECORD).version == 4
    store.remove("support")
    assert store.tasks() == []
    assert store.add("support", weights(), RECORD).version == 5
    (store.workspace.adapters / "support" / "last").write_text("?")
    assert store.add("support", weights(), RECORD).version == 6


def test_versions_added_at_once_are_all_kept(store: AdapterStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: store.add("support", weights(str(n)), {"n": n}), range(24)))
    assert sorted(adapter.version for adapter in made) == list(range(1, 25))
    for adapter in made:
        assert (adapter.path / "adapter_model.safetensors").read_text() == str(adapter.record["n"])
        store.verify(adapter)
    assert store.get("support").version == 24


def test_promote_and_roll_back(store: AdapterStore) -> None:
    add(store, "support", 3)
    assert store.promote("support@1").current
    assert store.get("support").version == 1
    assert [store.rollback("support").version for _ in range(3)] == [3, 2, 1]
    assert store.get("support").version == 1
    with pytest.raises(UsageError, match="no earlier version to roll back to") as caught:
        store.rollback("support")
    assert "support@1, support@2, support@3" in caught.value.remedy
    assert store.get("support").version == 1


def test_promoting_the_current_version_changes_nothing(store: AdapterStore) -> None:
    add(store, "support", 2)
    store.promote("support@2")
    assert store.rollback("support").version == 1


def test_promote_asks_for_a_version(store: AdapterStore) -> None:
    add(store, "support", 2)
    with pytest.raises(UsageError, match="names a task but no version") as caught:
        store.promote("support")
    assert "support@1, support@2" in caught.value.remedy


def test_rollback_passes_over_what_was_removed(store: AdapterStore) -> None:
    add(store, "support", 3)
    store.remove("support@2")
    assert store.rollback("support").version == 1


def test_rollback_after_a_promotion_cut_off_between_its_two_files(store: AdapterStore) -> None:
    add(store, "support", 2)
    history = store.workspace.adapters / "support" / "history"
    history.write_text(history.read_text() + "2\n")  # written, and then `current` was not
    assert store.rollback("support").version == 1


def test_remove_one_version(store: AdapterStore) -> None:
    add(store, "support", 3)
    removed = store.remove("support@2")
    assert [(a.name, a.method, a.current) for a in removed] == [("support@2", "lora", False)]
    assert not removed[0].path.exists()
    assert store.get("support").version == 3
    assert store.remove("support@3")[0].current
    assert store.get("support").version == 1
    assert names(store) == ["support@1"]


def test_remove_a_task(store: AdapterStore) -> None:
    add(store, "support", 2)
    add(store, "summary")
    assert [adapter.name for adapter in store.remove("support")] == ["support@1", "support@2"]
    assert store.tasks() == ["summary"]
    with pytest.raises(UsageError, match="Unknown task"):
        store.get("support")
    add(store, "support")
    with pytest.raises(UsageError, match="no earlier version to roll back to"):
        store.rollback("support")


@pytest.mark.parametrize("text", ['{"task": ', "[1]", "{}", "", "\udcff", "[" * 100_000])
def test_a_damaged_version_stands_apart(store: AdapterStore, text: str) -> None:
    add(store, "support", 3)
    add(store, "summary")
    folder = store.workspace.adapters / "support" / "2"
    (folder / "onebase.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert names(store) == ["summary@1", "support@1", "support@3"]
    assert list(store.unlisted()) == [folder]
    for use in (store.get, store.promote):
        with pytest.raises(CorruptFileError, match=re.escape(str(folder / "onebase.json"))) as seen:
            use("support@2")
        assert "onebase adapters remove support@2" in seen.value.remedy
    assert store.get("support").version == 3
    assert store.remove("support@2")[0].record == {}
    assert store.unlisted() == {}
    assert not folder.exists()


def test_a_damaged_version_does_not_become_current(store: AdapterStore) -> None:
    add(store, "support", 3)
    damage(store, "support", 2)
    with pytest.raises(CorruptFileError, match=r"2/onebase\.json"):
        store.rollback("support")
    assert store.get("support").version == 3
    store.remove("support@3")
    assert store.get("support").version == 1
    store.remove("support@1")
    assert store.tasks() == ["support"]
    with pytest.raises(UsageError, match="'support' has no current version"):
        store.get("support")


def test_a_damaged_pointer_names_its_file(store: AdapterStore) -> None:
    add(store, "support", 2)
    current = store.workspace.adapters / "support" / "current"
    for text in ("", "x", "7", "\udcff"):
        current.write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(CorruptFileError, match=re.escape(str(current))) as caught:
            store.get("support")
        assert "support@1, support@2" in caught.value.remedy
        assert names(store) == ["support@1", "support@2"]
    store.promote("support@1")
    assert store.get("support").version == 1


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_verify_misses_a_file(store: AdapterStore, name: str) -> None:
    adapter = store.add("support", weights(), RECORD)
    store.verify(adapter)
    (adapter.path / name).unlink()
    with pytest.raises(CorruptFileError, match=re.escape(str(adapter.path / name))) as caught:
        store.verify(adapter)
    assert "onebase adapters remove support@1" in caught.value.remedy


def test_verify_sees_broken_json(store: AdapterStore) -> None:
    adapter = store.add("support", weights(), RECORD)
    (adapter.path / "adapter_config.json").write_text("{")
    with pytest.raises(CorruptFileError, match=r"adapter_config\.json is damaged"):
        store.verify(adapter)
    weights()(adapter.path)
    damage(store, "support", 1)
    with pytest.raises(CorruptFileError, match=r"onebase\.json is damaged"):
        store.verify(adapter)


def test_verify_sees_one_changed_byte(store: AdapterStore) -> None:
    adapter = store.add("support", weights(), RECORD)
    (adapter.path / "adapter_model.safetensors").write_text("weightz")
    with pytest.raises(CorruptFileError, match="SHA-256"):
        store.verify(adapter)
    damage(store, "support", 1, '{"task": "support"}')
    with pytest.raises(CorruptFileError, match="SHA-256"):
        store.verify(adapter)


@pytest.mark.parametrize(
    ("file", "words", "remedy"),
    [
        (
            "adapter_config.json",
            "holds an adapter without onebase.json",
            "onebase adapters import ",
        ),
        ("config.json", "holds a model without onebase.json", "--base"),
        ("notes.txt", "onebase.json is damaged", "onebase adapters remove support@2"),
    ],
)
def test_a_version_that_was_copied_in_is_named(
    store: AdapterStore, file: str, words: str, remedy: str
) -> None:
    add(store, "support")
    folder = store.workspace.adapters / "support" / "2"
    folder.mkdir()
    (folder / file).write_text("{}", encoding="utf-8")
    for use in (store.get, store.promote):
        with pytest.raises(CorruptFileError, match=words) as caught:
            use("support@2")
        assert remedy in caught.value.remedy
    assert str(store.unlisted()[folder]) == str(caught.value)
    assert store.get("support").version == 1
    store.remove("support@1")
    with pytest.raises(CorruptFileError, match=words):
        store.get("support")


def test_an_adapter_in_place_of_a_task_is_named(store: AdapterStore) -> None:
    folder = store.workspace.adapters / "support"
    folder.mkdir(parents=True)
    config = {"base_model_name_or_path": "owner/model"}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(CorruptFileError, match="it was copied there") as caught:
        store.get("support")
    command = f"onebase adapters import {folder} --task support --base owner/model ;"
    assert command in caught.value.remedy
    assert list(store.unlisted()) == [folder]
    with pytest.raises(UsageError, match="Unknown task"):
        store.get("other")
