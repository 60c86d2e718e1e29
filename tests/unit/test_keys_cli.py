"""`llm-mesh keys`, on a store in memory."""

import argparse
import csv
import io
from collections.abc import Callable
from typing import Any

import pytest
from unit_rig import key

from extproc import keys, keys_cli
from extproc.keys_cli import UsageError
from extproc.store import MemoryStore

Said = Callable[[], Any]


async def run(store: MemoryStore, *words: str) -> int:
    parser = argparse.ArgumentParser()
    keys_cli.add_arguments(parser, "redis://nowhere")
    arguments = parser.parse_args(list(words))
    return int(await arguments.work(store, arguments))


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(lambda: 0)


CREATE = ("create", "--tenant", "acme", "--user", "ann")


async def test_a_key_is_printed_alone_and_stored_as_its_hash(
    store: MemoryStore, capsys: pytest.CaptureFixture[str]
) -> None:
    await run(store, *CREATE, "--models", "llama2, mistral", "--name", "laptop", "--requests-per-minute", "0")
    out, err = capsys.readouterr()
    made = out.strip()
    record = await store.find_key(keys.digest(made))
    assert record is not None
    assert (record.tenant, record.user, record.models, record.name) == ("acme", "ann", ["llama2", "mistral"], "laptop")
    assert record.limits == {"requests_per_minute": 0}
    assert record.expires_ms == 0
    assert record.key_id in err
    assert made not in err


@pytest.mark.parametrize(("span", "ms"), [("90m", 5_400_000), ("2h", 7_200_000), ("30d", 2_592_000_000)])
async def test_a_key_may_end_by_itself(store: MemoryStore, span: str, ms: int) -> None:
    await run(store, *CREATE, "--expires", span)
    [record] = await store.list_keys()
    assert record.expires_ms - record.created_ms == ms


@pytest.mark.parametrize("span", ["30", "d", "0d", "-1d", "1w", "1.5d", "²d", "9999999d"])
async def test_other_spans_are_refused(store: MemoryStore, span: str) -> None:
    with pytest.raises(UsageError):
        await run(store, *CREATE, f"--expires={span}")
    assert await store.list_keys() == []


async def test_a_key_for_no_model_is_refused(store: MemoryStore) -> None:
    with pytest.raises(UsageError):
        await run(store, *CREATE, "--models", " , ")


@pytest.mark.parametrize(
    "words",
    [
        ("create", "--tenant", "", "--user", "ann"),
        ("create", "--tenant", "a b", "--user", "ann"),
        ("create", "--tenant", "{a}", "--user", "ann"),
        ("create", "--tenant", "a" * 64, "--user", "ann"),
        ("create", "--user", "ann"),
        (*CREATE, "--max-in-flight", "-1"),
        (*CREATE, "--max-in-flight", "²"),
        (),
    ],
)
async def test_wrong_words_are_refused_before_anything_is_done(store: MemoryStore, words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit):
        await run(store, *words)
    assert await store.list_keys() == []


async def test_the_list_shows_each_key_and_its_state(store: MemoryStore, capsys: pytest.CaptureFixture[str]) -> None:
    await store.put_key("c", key(key_id="key_3", created_ms=3, expires_ms=1, name="[/b] :smile:"))
    await store.put_key("a", key(created_ms=1, limits={"max_in_flight": 2}))
    await store.put_key("b", key(key_id="key_2", created_ms=2, revoked_ms=1, models=["a", "b"]))
    await run(store, "list", "--csv")
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [r["key"] for r in rows] == ["key_1", "key_2", "key_3"]
    assert [r["state"] for r in rows] == ["valid", "revoked", "expired"]
    assert rows[0]["limits"] == "max_in_flight=2"
    assert rows[1]["models"] == "a,b"
    assert rows[0]["created"] == "1970-01-01 00:00"
    await run(store, "list")
    assert "[/b] :smile:" in capsys.readouterr().out


async def test_a_key_is_revoked_by_its_id_or_by_itself(store: MemoryStore, capsys: pytest.CaptureFixture[str]) -> None:
    for by_id in (True, False):
        await run(store, *CREATE)
        made = capsys.readouterr().out.strip()
        digest = keys.digest(made)
        await run(store, "revoke", keys.key_id(digest) if by_id else made)
        record = await store.find_key(digest)
        assert record is not None
        assert record.revoked_ms
        assert made not in capsys.readouterr().out


async def test_an_unknown_key_can_not_be_revoked(store: MemoryStore) -> None:
    with pytest.raises(UsageError):
        await run(store, "revoke", "key_nothing")
