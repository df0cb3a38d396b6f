"""What is offered follows the workspace, and says why something is not."""

import json
import os
import re
from collections.abc import Callable
from typing import Any

import pytest

from onebase.adapters.store import RECORD, WEIGHTS, AdapterStore, StoredAdapter
from onebase.errors import UsageError
from onebase.model.base import Base
from onebase.serving.catalog import Catalog
from onebase.serving.errors import ApiError

StoreTask = Callable[..., StoredAdapter]


def catalog_of(store: AdapterStore, base: Base, **settings: Any) -> Catalog:
    return Catalog(store, base, **{"allow_full": False, **settings})


def status_of(catalog: Catalog, name: str) -> tuple[int, str]:
    with pytest.raises(ApiError) as caught:
        catalog.find(name)
    return caught.value.status, str(caught.value)


def test_names(store: AdapterStore, base: Base, store_task: StoreTask) -> None:
    store_task("support")
    store_task("support", seed=1, promote=False)
    catalog = catalog_of(store, base)
    assert catalog.find("base") is None
    for name, version in (("support", 1), ("support@1", 1), ("support@2", 2)):
        offer = catalog.find(name)
        assert offer is not None
        assert offer.adapter.version == version
    wrong = ["support@3", "support@02", "support@0", "support@", "support@x", "suport", "Support"]
    wrong += [
        "",
        "@1",
        "..",
        "../ws/adapters/support",
        "support/1",
        "support@" + "9" * 5000,
        "a\0b",
    ]
    for name in wrong:
        status, text = status_of(catalog, name)
        assert status == 404, name
        assert "Valid: base, support, support@1, support@2." in text
        assert str(store.workspace.root) not in text


@pytest.mark.parametrize("look", ["at the request", "in the background"])
def test_changes_of_another_process(
    store: AdapterStore, base: Base, store_task: StoreTask, look: str
) -> None:
    catalog = catalog_of(store, base)
    elsewhere = AdapterStore(store.workspace)

    def current(task: str) -> int:
        if look == "in the background":
            catalog.refresh()
            return next(
                offer.adapter.version
                for offer in catalog.offers()
                if offer.adapter.task == task and offer.adapter.current
            )
        offer = catalog.find(task)
        assert offer is not None
        return offer.adapter.version

    store_task("support")
    assert current("support") == 1
    store_task("support", seed=1)
    assert current("support") == 2
    elsewhere.promote("support@1")
    assert current("support") == 1
    elsewhere.rollback("support")
    assert current("support") == 2
    elsewhere.remove("support@2")
    assert current("support") == 1
    elsewhere.remove("support")
    catalog.refresh()
    assert status_of(catalog, "support")[0] == 404
    assert catalog.offers() == []


def test_replaced_files_are_another_state(
    store: AdapterStore, base: Base, store_task: StoreTask
) -> None:
    """In place, which changes no folder."""
    stored = store_task("support")
    catalog = catalog_of(store, base)
    first = catalog.find("support")
    weights = stored.path / WEIGHTS
    weights.write_bytes(weights.read_bytes())
    os.utime(weights, ns=(1, 1))
    second = catalog.find("support")
    assert first is not None
    assert second is not None
    assert first.state != second.state
    record = json.loads((stored.path / RECORD).read_text(encoding="utf-8"))
    (stored.path / RECORD).write_text(json.dumps({**record, "head": True}), encoding="utf-8")
    assert status_of(catalog, "support@1")[0] == 409


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"base_fingerprint": "0" * 16, "base": "/home/me/other"}, r"another base \(other\)"),
        ({"head": True}, "reward model"),
        ({"method": "full"}, "--allow-full"),
    ],
)
def test_what_does_not_answer_here_says_why(
    store: AdapterStore, base: Base, store_task: StoreTask, record: dict[str, Any], words: str
) -> None:
    store_task("support", record=record)
    catalog = catalog_of(store, base)
    (offer,) = catalog.offers()
    assert re.search(words, offer.reason or "")
    status, text = status_of(catalog, "support")
    assert status == 409
    assert re.search(words, text)
    assert "/home" not in text


def test_full_tasks_if_allowed(store: AdapterStore, base: Base, store_task: StoreTask) -> None:
    store_task("whole", record={"method": "full", "base_fingerprint": "0" * 16})
    assert status_of(catalog_of(store, base), "whole")[0] == 409
    offer = catalog_of(store, base, allow_full=True).find("whole")
    assert offer is not None
    assert (offer.name, offer.reason) == ("whole@1", None)


def test_offer_and_withdraw(store: AdapterStore, base: Base, store_task: StoreTask) -> None:
    store_task("support")
    store_task("mood")
    catalog = catalog_of(store, base, tasks=["mood"])
    assert status_of(catalog, "support")[0] == 409
    catalog.offer("support")
    assert catalog.find("support")
    catalog.withdraw("support")
    assert status_of(catalog, "support@1")[0] == 409
    assert catalog.find("mood")
    catalog.offer("support")
    assert catalog.find("support")
    for call in (catalog.offer, catalog.withdraw):
        with pytest.raises(ApiError, match="suport"):
            call("suport")


def test_an_unknown_task_to_offer(store: AdapterStore, base: Base, store_task: StoreTask) -> None:
    store_task("support")
    with pytest.raises(UsageError, match="suport"):
        catalog_of(store, base, tasks=["suport"])


@pytest.mark.parametrize(
    ("task", "record", "words"),
    [
        ("support@1", {}, "--tasks support"),
        ("support", {"head": True}, "reward model"),
        ("support", {"method": "full"}, "--allow-full"),
        ("support", {"base_fingerprint": "0" * 16, "base": "other"}, "another base"),
    ],
)
def test_a_task_to_offer_that_cannot_answer(
    store: AdapterStore,
    base: Base,
    store_task: StoreTask,
    task: str,
    record: dict[str, Any],
    words: str,
) -> None:
    store_task("support", record=record)
    with pytest.raises(UsageError) as refused:
        catalog_of(store, base, tasks=[task])
    assert words in str(refused.value)


def test_a_damaged_record(store: AdapterStore, base: Base, store_task: StoreTask) -> None:
    stored = store_task("support")
    (stored.path / RECORD).write_text("{", encoding="utf-8")
    store_task("support", seed=1)
    catalog = catalog_of(store, base)
    assert catalog.damaged() == ["support@1"]
    assert status_of(catalog, "support@1")[0] == 409
    assert catalog.find("support@2")


def test_an_empty_workspace(store: AdapterStore, base: Base) -> None:
    catalog = catalog_of(store, base)
    assert catalog.find("base") is None
    assert status_of(catalog, "support") == (
        404,
        "There is no model 'support'. Valid: base.",
    )


def test_a_long_list_of_names_is_cut(
    store: AdapterStore, base: Base, store_task: StoreTask
) -> None:
    for number in range(30):
        store_task(f"t{number:02}", "ia3")
    text = status_of(catalog_of(store, base), "x")[1]
    assert "t24, and 11 more." in text
