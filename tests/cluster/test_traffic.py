"""What the mesh promises of traffic: weights, retries, ejection, and no failed request while things change."""

import math
import threading

import httpx
import openai
import pytest
from mesh_rig import Mesh, count
from stack_rig import NO_TLS, Caller, eventually, unique
from traffic import Traffic

SIGMAS = 4.5  # a fair split is outside once in 150,000 runs


def test_weights_split_the_requests_of_a_model(mesh: Mesh, caller: Caller) -> None:
    marker, requests, weight = unique("split"), 400, 30
    with mesh.arm("mistral") as canary:
        at_canary = mesh.door(canary)
        mesh.weigh("mistral", 100 - weight, weight)
        for n in range(requests):
            assert caller.chat(f"{marker} {n}", model="mistral", max_tokens=1).status_code == 200
        seen = count(at_canary, marker)
    expected = requests * weight / 100
    spread = SIGMAS * math.sqrt(requests * weight / 100 * (1 - weight / 100))
    assert abs(seen - expected) < spread, f"{seen} of {requests} at weight {weight}"


def test_new_weights_are_live_without_a_failed_request(mesh: Mesh, caller: Caller) -> None:
    with mesh.arm("mistral") as canary, Traffic(caller, model="mistral") as traffic:
        (stable_pod, *_) = [pod for pod in mesh.pods("mistral") if pod is not canary]
        at_canary, at_stable, marker = mesh.door(canary), mesh.door(stable_pod), unique("moved")
        for stable, weight in ((50, 50), (0, 100), (90, 10), (0, 100)):
            mesh.weigh("mistral", stable, weight)
            traffic.more(50)
        for n in range(20):
            assert caller.chat(f"{marker} {n}", model="mistral", max_tokens=1).status_code == 200
        assert count(at_canary, marker) > 0
        assert count(at_stable, marker) == 0
        mesh.weigh("mistral", 100, 0)
        traffic.more(50)
    assert traffic.failed() == []


def test_one_bad_replica_is_hidden_then_ejected_then_let_back(mesh: Mesh, caller: Caller) -> None:
    mesh.kubectl("scale", "deployment", "llama2", "--replicas=2")
    mesh.settled()
    bad = mesh.pods("llama2")[1]
    at_bad = mesh.door(bad)
    try:
        with Traffic(caller, model="llama2") as traffic, httpx.Client(verify=NO_TLS) as client:
            assert client.post(f"{at_bad}/sim/down", json={"seconds": 12}).status_code == 200
            eventually(lambda: mesh.ejected("llama2"))
            traffic.more(100)
            eventually(lambda: not mesh.ejected("llama2"), 60)
            marker = unique("back")

            def reached_again() -> bool:
                assert caller.chat(marker, model="llama2", max_tokens=1).status_code == 200
                return count(at_bad, marker) > 0

            eventually(reached_again, 60)
        assert traffic.failed() == []
    finally:
        mesh.kubectl("scale", "deployment", "llama2", "--replicas=1")


def test_without_istiod_the_traffic_goes_on(mesh: Mesh, caller: Caller) -> None:
    with Traffic(caller, model="mistral") as traffic:
        mesh.platform.do(mesh.stack.stop_istiod())
        traffic.more(100)
        mesh.platform.do(mesh.stack.start_istiod())
        traffic.more(20)
    assert traffic.failed() == []
    with mesh.arm("mistral"):
        mesh.weigh("mistral", 60, 40)  # and it is heard again


def test_a_rolling_update_of_the_gateway_fails_no_request_and_cuts_no_stream(mesh: Mesh, caller: Caller) -> None:
    old = {pod.name for pod in mesh.pods("llm-gateway")}
    streams = [Stream(caller) for _ in range(4)]
    with Traffic(caller, model="mistral") as traffic:
        for stream in streams:
            stream.start()
        mesh.kubectl("rollout", "restart", "deployment/llm-gateway")
        mesh.settled()
        eventually(lambda: not old & {pod.name for pod in mesh.stack.agent.pods.values()}, 120)
        traffic.more(50)
    for stream in streams:
        stream.join()
    assert traffic.failed() == []
    assert [stream.error for stream in streams] == [""] * len(streams)
    assert not old & {pod.name for pod in mesh.pods("llm-gateway")}


def test_a_rolling_update_of_a_model_fails_no_request(mesh: Mesh, caller: Caller) -> None:
    with Traffic(caller, model="codellama") as traffic:
        mesh.kubectl("rollout", "restart", "deployment/codellama")
        mesh.settled()
        traffic.more(50)
    assert traffic.failed() == []
    assert {outcome.model for outcome in traffic.outcomes} == {"codellama"}


def test_an_edited_configuration_arrives_without_a_restart(mesh: Mesh, caller: Caller) -> None:
    before = mesh.get("configmap", "llm-mesh")["data"]["llm-mesh.yaml"]
    alias = '  - {pattern: "my-own-name", model: codellama}\n'
    edited = before.replace("aliases:", "aliases:\n" + alias, 1) if "aliases:\n" in before else ""
    edited = edited or before.replace("\ntasks:", f"\n{alias}tasks:", 1)
    started = [pod.uid for pod in mesh.pods("llm-gateway")]
    put = [{"op": "replace", "path": "/data/llm-mesh.yaml", "value": edited}]
    try:
        mesh.patch("configmap", "llm-mesh", put)
        eventually(lambda: caller.chat(model="my-own-name", max_tokens=1).headers.get("x-llm-model") == "codellama")
    finally:
        mesh.patch("configmap", "llm-mesh", [{**put[0], "value": before}])
    assert [pod.uid for pod in mesh.pods("llm-gateway")] == started


class Stream(threading.Thread):
    """A streamed answer that is under way for some seconds."""

    def __init__(self, caller: Caller) -> None:
        super().__init__()
        self._client = caller.openai
        self.error = "not ended"

    def run(self) -> None:
        headers = {"x-sim-tokens": "400"}
        try:
            ended = ""
            stream = self._client.chat.completions.create(
                model="mistral",
                messages=[{"role": "user", "content": unique()}],
                stream=True,
                max_tokens=400,
                extra_headers=headers,
            )
            for chunk in stream:
                ended = chunk.choices[0].finish_reason or ended if chunk.choices else ended
            self.error = "" if ended else "cut"
        except openai.OpenAIError as error:
            self.error = repr(error)


@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions?a=b"])
def test_plain_http_is_sent_to_https(mesh: Mesh, path: str) -> None:
    (gateway, *_) = mesh.pods("llm-gateway")
    with httpx.Client(verify=NO_TLS) as client:
        answer = client.get(f"http://{gateway.ip}:8080{path}", headers={"host": "llm.example.com"})
    assert answer.status_code == 301
    assert answer.headers["location"] == f"https://llm.example.com{path}"
