"""The configuration while it runs: taken without a failed request, kept where it is unusable."""

from collections.abc import Callable
from pathlib import Path

import pytest
from stack_rig import CONFIG, Caller, Json, Metrics, Platform, StartPlatform, cli, eventually, health, write_config
from traffic import Traffic


def alias(pattern: str, model: str) -> Callable[[Json], None]:
    def change(config: Json) -> None:
        config["aliases"].insert(0, {"pattern": pattern, "model": model})

    return change


def served_by(caller: Caller, model: str) -> str:
    answer = caller.chat(model=model, max_tokens=1)
    return answer.headers["x-llm-model"] if answer.status_code == 200 else str(answer.status_code)


def test_a_changed_file_is_taken_in_two_seconds_and_a_bad_one_never(
    start_platform: StartPlatform, tmp_path: Path
) -> None:
    path = write_config(tmp_path / "llm-mesh.yaml", alias("mine", "llama2"))
    with start_platform(config=path, drain_seconds=0.1) as platform, Caller(platform) as caller:
        first = health(platform)["config"]["revisions"]
        assert served_by(caller, "mine") == "llama2"

        def all_say(model: str) -> bool:
            return [served_by(caller, "mine") for _ in range(10)] == [model] * 10

        with Traffic(caller) as traffic:
            write_config(path, alias("mine", "mistral"))
            eventually(lambda: all_say("mistral"), seconds=2.0)
        assert traffic.failed() == []
        second = eventually(lambda: only_one(platform, but=first))
        assert health(platform)["status"] == "ok"
        assert Metrics(platform).value("llm_config_reloads_total", result="taken") == 2

        bad = path.read_text().replace("default_model: mistral", "default_model: nobody")
        line = bad.splitlines().index("default_model: nobody") + 1
        path.write_text(bad)
        eventually(lambda: health(platform)["config"]["errors"])
        found = health(platform)
        assert found["status"] == "degraded"
        assert found["config"]["errors"] == [f"{path}:{line}: `nobody` is no model of this file"]
        assert found["config"]["revisions"] == second
        assert all_say("mistral")
        eventually(lambda: Metrics(platform).value("llm_config_reloads_total", result="refused") == 2)

        path.unlink()
        eventually(lambda: "No such file" in str(health(platform)["config"]["errors"]))
        assert all_say("mistral")

        write_config(path, alias("mine", "codellama"))
        eventually(lambda: all_say("codellama"), seconds=2.0)
        eventually(lambda: health(platform)["status"] == "ok")
        assert health(platform)["config"]["errors"] == []


def only_one(platform: Platform, but: list[str]) -> list[str] | None:
    """All workers' revision, once they agree on another one."""
    revisions: list[str] = health(platform)["config"]["revisions"]
    return revisions if len(revisions) == 1 and revisions != but else None


def test_a_good_file_is_said_to_be_good() -> None:
    done = cli(None, "check", str(CONFIG))
    assert done.returncode == 0
    assert done.stdout.startswith(f"{CONFIG}: ok, revision ")
    assert "llama2, mistral, codellama, bge-small" in done.stdout


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("default_model: mistral", "default_model: nobody", "`nobody` is no model of this file"),
        ("default_model: mistral", "defualt_model: mistral", "defualt_model"),
        ("context_tokens: 8192", "context_tokens: many", "Expected `int`"),
        ("context_tokens: 8192", "context_tokens: 0", ">= 1"),
        ("  chat: llama2", "  chat: llama3", "llama3"),
        ("  chat: llama2", "  chat: llama2\n  chat: mistral", "given twice"),
        ("  requests_per_minute: 100", "  requests_per_minute: -1", ">= 0"),
        ("aliases:", "aliases: [", ""),
        ("    fallbacks: [mistral]", "    fallbacks: [mistrol]", "mistrol"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(tmp_path: Path, old: str, new: str, words: str) -> None:
    text = CONFIG.read_text()
    assert text.count(old) == 1
    path = tmp_path / "bad.yaml"
    path.write_text(text.replace(old, new))
    at = text[: text.index(old)].count("\n") + 1
    done = cli(None, "check", str(path))
    assert done.returncode == 1
    assert done.stdout == ""
    location, _, message = done.stderr.removeprefix("llm-mesh: ").partition(": ")
    name, _, line = location.rpartition(":")
    assert name == str(path)
    assert words in message
    if words:
        assert int(line) in (at, at + new.count("\n"))
    assert int(line) > 0


def test_a_file_that_is_not_there_is_said_to_be_missing() -> None:
    done = cli(None, "check", "nowhere.yaml")
    assert (done.returncode, done.stdout) == (1, "")
    assert "nowhere.yaml" in done.stderr
    assert "Traceback" not in done.stderr
