"""`llm-mesh keys` as a person uses it, and what the platform makes of the keys."""

import csv
import hashlib
import io
import re
import uuid

import httpx
import pytest
from stack_rig import NO_TLS, Json, Platform, ask, cli, connected, eventually


def created(platform: Platform, *options: str, tenant: str = "", user: str = "ann") -> tuple[str, str, str]:
    """Key, key id and tenant of a new key."""
    tenant = tenant or "k-" + uuid.uuid4().hex[:8]
    done = cli(platform, "keys", "create", "--tenant", tenant, "--user", user, *options)
    assert done.returncode == 0, done.stderr
    (key,) = done.stdout.splitlines()
    match = re.match(r"(key_[0-9a-f]{12}): keep the key above", done.stderr)
    assert match, done.stderr
    return key, match[1], tenant


def listed(platform: Platform) -> dict[str, Json]:
    done = cli(platform, "keys", "list", "--csv")
    assert done.returncode == 0, done.stderr
    return {row["key"]: row for row in csv.DictReader(io.StringIO(done.stdout))}


def status(platform: Platform, key: str, http: httpx.Client | None = None, **fields: object) -> int:
    headers = {"authorization": f"Bearer {key}"}
    body = {**ask(max_tokens=1), **fields}
    if http is not None:
        return http.post("/chat/completions", json=body, headers=headers).status_code
    with httpx.Client(base_url=platform.stack.base_url, verify=NO_TLS) as client:
        return client.post("/chat/completions", json=body, headers=headers).status_code


def test_a_key_is_printed_once_works_at_once_and_only_its_hash_is_kept(platform: Platform) -> None:
    key, key_id, tenant = created(platform)
    assert re.fullmatch(r"sk-llm-[A-Za-z0-9_-]{43}", key)
    assert status(platform, key) == 200
    digest = hashlib.sha256(key.encode()).hexdigest()
    assert key_id == "key_" + digest[:12]
    with connected(platform) as redis:
        assert tenant in redis.hget("llm:{keys}", digest)
        everything = [redis.hgetall("llm:{keys}"), redis.keys("*")]
    assert key not in str(everything)
    assert key.removeprefix("sk-llm-") not in str(everything)


def test_the_list_shows_what_a_key_may_do_and_never_the_key(platform: Platform) -> None:
    options = (
        "--models",
        "mistral, bge-small",
        "--expires",
        "30d",
        "--requests-per-minute",
        "7",
        "--name",
        "CI runner",
    )
    key, key_id, tenant = created(platform, *options)
    row = listed(platform)[key_id]
    assert (row["tenant"], row["user"], row["state"]) == (tenant, "ann", "valid")
    assert row["models"] == "mistral,bge-small"
    assert row["limits"] == "requests_per_minute=7"
    assert row["name"] == "CI runner"
    assert row["expires"] > row["created"]
    shown = cli(platform, "keys", "list").stdout + str(row)
    assert key_id in shown
    assert key not in shown
    assert hashlib.sha256(key.encode()).hexdigest() not in shown


@pytest.mark.parametrize("by", ["key id", "key"])
def test_a_revoked_key_is_refused_within_two_seconds_by_all_workers(platform: Platform, by: str) -> None:
    key, key_id, _ = created(platform)
    for _ in range(10):  # both workers know it
        assert status(platform, key) == 200
    done = cli(platform, "keys", "revoke", key if by == "key" else key_id)
    assert (done.returncode, done.stdout) == (0, f"{key_id} is revoked\n")
    with httpx.Client(base_url=platform.stack.base_url, verify=NO_TLS) as http:
        # A request asks one worker: ten refusals in a row, on one connection, come from both.
        eventually(lambda: [status(platform, key, http) for _ in range(10)] == [401] * 10, seconds=2.0)
        assert [status(platform, key, http) for _ in range(10)] == [401] * 10
    assert listed(platform)[key_id]["state"] == "revoked"


def test_a_key_may_use_its_models_only(platform: Platform) -> None:
    key, _, _ = created(platform, "--models", "mistral")
    assert status(platform, key, model="mistral") == 200
    assert status(platform, key, model="llama2") == 404


def test_a_key_has_its_own_limit_and_otherwise_the_configurations(platform: Platform) -> None:
    key, _, _ = created(platform, "--requests-per-minute", "2")
    assert [status(platform, key) for _ in range(3)] == [200, 200, 429]
    unlimited, _, _ = created(platform, "--requests-per-minute", "0", "--tokens-per-minute", "0")
    with httpx.Client(base_url=platform.stack.base_url, verify=NO_TLS) as http:
        answer = http.post(
            "/chat/completions", json=ask(max_tokens=1), headers={"authorization": f"Bearer {unlimited}"}
        )
    assert not [name for name in answer.headers if name.startswith("x-ratelimit")]


def test_a_key_of_a_minute_is_valid_now_and_shown_with_its_end(platform: Platform) -> None:
    key, key_id, _ = created(platform, "--expires", "1m")
    assert status(platform, key) == 200
    row = listed(platform)[key_id]
    assert (row["state"], bool(row["expires"])) == ("valid", True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["create", "--user", "ann"], "--tenant"),
        (["create", "--tenant", "a b", "--user", "ann"], "letters, digits"),
        (["create", "--tenant", "", "--user", "ann"], "letters, digits"),
        (["create", "--tenant", "x" * 64, "--user", "ann"], "63 at most"),
        (["create", "--tenant", "a", "--user", "ann", "--expires", "soon"], "--expires soon"),
        (["create", "--tenant", "a", "--user", "ann", "--requests-per-minute", "-1"], "whole number"),
        (["create", "--tenant", "a", "--user", "ann", "--requests-per-minute", "2.5"], "whole number"),
        (["revoke", "key_000000000000"], "there is no key key_000000000000"),
        (["revoke", "sk-llm-nobody"], "there is no key"),
    ],
)
def test_a_wrong_command_line_says_what_is_wrong_and_makes_no_key(
    platform: Platform, arguments: list[str], words: str
) -> None:
    before = platform.do(platform.store.list_keys())
    done = cli(platform, "keys", *arguments)
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert platform.do(platform.store.list_keys()) == before


def test_without_redis_the_command_says_so() -> None:
    done = cli(None, "keys", "list", "--redis", "redis://127.0.0.1:1/0")
    assert done.returncode == 1
    assert done.stderr.startswith("llm-mesh: ")
    assert "127.0.0.1" in done.stderr


def test_a_store_that_is_away_is_named_without_its_password() -> None:
    done = cli(None, "keys", "list", "--redis", "redis://:open-sesame@127.0.0.1:1/0")
    assert done.returncode == 1
    assert "no Redis at redis://127.0.0.1:1/0: " in done.stderr
    assert "open-sesame" not in done.stdout + done.stderr
