"""`make smoke` against the whole platform on this machine: it passes what is right and says what is not."""

import re
from io import StringIO

import openai
import pytest
from rich.console import Console
from stack_rig import NO_TLS, Platform, StartPlatform, eventually

from tools.overlays import questions, smoke


def smoked(url: str, key: str) -> tuple[int, str]:
    text = StringIO()
    return smoke.run(url, key, Console(file=text, width=200)), text.getvalue()


def test_a_sound_platform_passes_and_each_model_is_asked_for_what_it_serves(platform: Platform) -> None:
    status, text = smoked(platform.stack.base_url, platform.key())
    assert status == 0, text
    for model in ("llama2", "mistral", "codellama"):
        assert re.search(rf"✓ +{model}: chat", text), text
        assert re.search(rf"✓ +{model}: streamed.* ms +\d+ ms", text), text
    assert re.search(r"✓ +bge-small: embeddings +384 dimensions", text), text
    assert "bge-small: chat" not in text
    assert re.search(r"✓ +cached repeat +hit", text), text
    assert "all 12 as they should be" in text


def test_the_address_may_be_given_without_its_version(platform: Platform) -> None:
    status, text = smoked(platform.stack.base_url.removesuffix("/v1") + "/", platform.key())
    assert status == 0, text


def test_a_key_is_asked_only_for_the_models_that_it_may_use(platform: Platform) -> None:
    status, text = smoked(platform.stack.base_url, platform.key(models=["mistral"], limited=True))
    assert status == 0, text
    assert "llama2" not in text
    assert re.search(r"limits +\d+ of 100 requests left, \d+ of 100000 tokens left", text), text


def test_a_model_that_is_down_fails_though_its_fallback_answers(start_platform: StartPlatform) -> None:
    with start_platform(workers=1) as platform:
        platform.stack.children["backend-llama2"].kill()
        with platform.client() as client:  # the processor passes a model over once it has seen it fail
            eventually(lambda: _answered_by(client) == "mistral")
        status, text = smoked(platform.stack.base_url, platform.key())
        assert status == 1
        assert re.search(r"✗ +llama2: chat +expected an answer by llama2, but mistral answered", text), text
        assert re.search(r"✓ +mistral: chat", text), text


def test_an_unknown_key_is_said_at_once(platform: Platform) -> None:
    with pytest.raises(smoke.SmokeError, match=r"this key is not known there.*llm-mesh keys create"):
        smoked(platform.stack.base_url, "sk-llm-" + "1" * 43)


def test_an_address_where_nobody_listens_is_said_at_once() -> None:
    with pytest.raises(smoke.SmokeError, match=r"http://127\.0\.0\.1:9/v1/?: .*refused"):
        smoked("http://127.0.0.1:9", "sk-llm-" + "1" * 43)


def test_without_an_address_or_a_key_the_command_says_how_it_is_called() -> None:
    for url, key in (("", "sk-llm-x"), ("https://localhost/v1", "")):
        with pytest.raises(smoke.SmokeError, match=r"make smoke BASE_URL=.* API_KEY="):
            smoked(url, key)


@pytest.mark.parametrize(
    ("question", "said"),
    [(questions.unknown_model, "the code model_not_found, but: 404"), (questions.wrong_key, "but it was let in")],
)
def test_a_server_with_other_doors_and_errors_is_found_out(
    platform: Platform, question: smoke.Question, said: str
) -> None:
    """The model itself, asked past the gateway: it knows no keys, and its errors are vLLM's."""
    address = f"http://{platform.stack.models['llama2']}/v1"
    http = openai.DefaultHttpxClient(verify=NO_TLS)
    client = openai.OpenAI(base_url=address, api_key="any", max_retries=0, http_client=http)
    with client, pytest.raises(questions.UnexpectedError, match=said):
        question(client)


def _answered_by(client: openai.OpenAI) -> str:
    create = client.chat.completions.with_raw_response.create
    try:
        answer = create(model="llama2", messages=[{"role": "user", "content": "Hello"}], max_tokens=1)
    except openai.APIStatusError:
        return ""
    return answer.headers["x-llm-model"]
