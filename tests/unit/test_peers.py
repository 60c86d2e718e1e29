"""The peers of `make bench-peers`: what is written for them, how they are judged, and that none is left behind."""

import sys
from pathlib import Path

import msgspec
import peer_cache
import pytest
import yaml
from figures import Figures
from load import Tally
from measure import BenchError
from peer_catalogue import PEERS, Launch, Site, addressed
from peer_report import lost as share
from peer_report import markdown
from peer_rig import ready, stop_all
from peer_scenarios import holding, judge, over
from process_tree import Tree
from rig import DIRECT
from stack_rig import eventually

from extproc.local.process import Child, StackError

SITE = Site(Path("/cache"), Path("/here"), "127.0.0.1:8000", "bench/chat-7b", 21000, 21001, 21002)
LAUNCHES = {peer.name: peer.launch(SITE) for peer in PEERS}
TALLY = Tally(requests=100, failed=0, failure="", per_second=50, p50=1, p99=2, cpu_us=3)
FIGURES = Figures(100, 0, 50, 1, 2, "event", {"gateway": 9.5}, {}, 0, 0, 0, events_per_second=5000)


@pytest.mark.parametrize("launch", LAUNCHES.values(), ids=LAUNCHES)
def test_each_is_told_its_port_and_the_backend(launch: Launch) -> None:
    told = " ".join([*launch.command, *launch.files.values(), *launch.headers.values()])
    assert "21000" in told
    assert "http://127.0.0.1:8000" in told


def test_litellm_is_configured_as_its_checklist_for_production_says() -> None:
    launch = LAUNCHES["LiteLLM"]
    config = yaml.safe_load(launch.files["config.yaml"])
    assert launch.environment.items() >= {("LITELLM_MODE", "PRODUCTION"), ("LITELLM_LOG", "ERROR")}
    assert launch.command[-2:] == ("--num_workers", "1")
    assert config["litellm_settings"]["set_verbose"] is False
    assert "cache" not in config["litellm_settings"]


def test_litellm_with_limits_keeps_them_and_its_cache_in_redis() -> None:
    launch = LAUNCHES["LiteLLM+limits"]
    config = yaml.safe_load(launch.files["config.yaml"])
    assert config["router_settings"] == {"redis_host": "127.0.0.1", "redis_port": 21002}
    assert config["litellm_settings"]["cache_params"] == {"type": "redis", "host": "127.0.0.1", "port": 21002}
    module, function = config["general_settings"]["custom_auth"].split(".")
    names: dict[str, object] = {}
    text = launch.files[f"{module}.py"]
    exec(compile(text.replace("from litellm", "# from litellm"), module, "exec"), names)  # noqa: S102  our own text
    assert callable(names[function])


def test_only_the_named_headers_of_a_request_change() -> None:
    head, body = b"POST /v1 HTTP/1.1\r\nhost: a\r\nauthorization: Bearer ours\r\ncontent-length: 9", b'{"a":\r\n\r\n'
    wanted = b"POST /v1 HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\nauthorization: Bearer theirs\r\nx-b: c"
    head, wanted = (each + b"\r\n\r\n" + body for each in (head, wanted))
    assert addressed(head, {"authorization": "Bearer theirs", "x-b": "c"}) == wanted
    assert addressed(head, {}) == head


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_the_version_of_each_stands_in_its_lock_file(peer: object) -> None:
    assert peer_cache.version(peer)[0].isdigit()  # type: ignore[arg-type]


def test_a_version_is_the_packages_own_and_not_one_that_begins_alike() -> None:
    assert (
        peer_cache.python_version("a-b==1\nlitellm-x==2 \\\nlitellm==3.1 \\\n    --hash=sha256:0\n", "litellm") == "3.1"
    )
    with pytest.raises(StackError):
        peer_cache.python_version("litellm-x==2", "litellm")


def test_lock_files_have_hashes_and_name_no_registry() -> None:
    for lock in Path(peer_cache.__file__).parent.glob("*/*lock*"):
        text = lock.read_text()
        assert "sha256:" in text or '"integrity": "sha512-' in text
        assert "index-url" not in text
        assert '"resolved"' not in text


def test_a_share_of_lost_requests_is_a_figure_but_all_of_them_are_none() -> None:
    judge("x", lost(99), 400, {})
    with pytest.raises(BenchError, match="none of 100 requests was answered; the first: 502"):
        judge("x", lost(100), 100, {})


def lost(failed: int) -> Tally:
    return msgspec.structs.replace(TALLY, failed=failed, failure="502")


def test_without_losses_the_backend_must_have_seen_every_request_once() -> None:
    judge("x", TALLY, 100, {})
    for seen in (99, 101):
        with pytest.raises(BenchError, match="the backend saw"):
            judge("x", TALLY, seen, {})


def test_streams_may_be_told_in_other_events_but_not_come_short() -> None:
    judge("x", msgspec.structs.replace(TALLY, events=1010), 100, {"events": 10})
    with pytest.raises(BenchError, match="800 events in 100 streams"):
        judge("x", msgspec.structs.replace(TALLY, events=800), 100, {"events": 10})


def test_who_loses_a_stream_or_falls_behind_does_not_hold() -> None:
    replace = msgspec.structs.replace
    found = {
        DIRECT: FIGURES,
        "near": replace(FIGURES, events_per_second=4600),
        "slow": replace(FIGURES, events_per_second=4000),
        "lossy": replace(FIGURES, failed=1),
    }
    assert holding(found) == [DIRECT, "near"]


def test_the_table_leaves_open_what_was_not_measured() -> None:
    table = markdown({"stream_light": {"Portkey": FIGURES}}, {"Portkey": "1.15.2"}, 50)
    _, _, row = table.splitlines()
    assert row == "| Portkey 1.15.2 | – | – | – | – | 5,000; 0.0 | – | – | 0 |"


def test_the_table_says_who_did_not_keep_up() -> None:
    slow = msgspec.structs.replace(FIGURES, unit="request", per_second=36, added_p50=900.0, added_p99=1800.0)
    found = {"paced": {"slow": slow, "quick": msgspec.structs.replace(slow, per_second=49)}}
    _, _, *rows = markdown(found, {}, 50).splitlines()
    assert ["carried 36/s" in row for row in rows] == [True, False]


def test_what_one_round_lost_is_not_hidden_by_the_median() -> None:
    rounds = [FIGURES, msgspec.structs.replace(FIGURES, failed=30), FIGURES]
    assert share(over(rounds)) == "10.0%"
    assert share(over([FIGURES, FIGURES])) == "0"


_CRASH = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
print("first", "\\n" * 100, "no master key is set", flush=True)
sys.exit(3)
"""


async def test_a_peer_that_crashes_at_its_start_shows_its_last_words_and_leaves_nothing(tmp_path: Path) -> None:
    child = Child("peer", [sys.executable, "-c", _CRASH], tmp_path / "peer.log")
    await child.start()
    tree = Tree(child.pid)
    with pytest.raises(StackError, match="no master key is set") as caught:
        await ready(child, "http://127.0.0.1:9/")
    assert "first" not in str(caught.value)
    await stop_all([child])
    assert eventually(lambda: not tree.members())
