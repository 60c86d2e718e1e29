"""Errors as the OpenAI SDKs read them."""

import json

import httpx
import openai
import pytest

from extproc import decision, errors
from extproc.errors import ApiError

EVERY = [
    (errors.invalid("no", "n", "c"), openai.BadRequestError),
    (errors.invalid_api_key("no", "unknown"), openai.AuthenticationError),
    (errors.not_found("GET", "/x"), openai.NotFoundError),
    (errors.model_not_found("m"), openai.NotFoundError),
    (errors.too_large(5), openai.APIStatusError),
    (errors.unsupported_media("no"), openai.APIStatusError),
    (errors.unavailable("no"), openai.InternalServerError),
    (ApiError(429, "rate_limit_exceeded", "no", kind="requests", retry_after_ms=1), openai.RateLimitError),
]


class Answering(httpx.BaseTransport):
    """A connection on which every request is answered with one error."""

    def __init__(self, error: ApiError) -> None:
        self.error = error

    def handle_request(self, _request: httpx.Request) -> httpx.Response:
        headers = decision.error_headers(self.error)
        return httpx.Response(self.error.status, content=self.error.body(), headers=headers)


@pytest.mark.parametrize(("error", "kind"), EVERY, ids=lambda x: getattr(x, "code", None))
def test_the_official_client_raises_the_right_exception(error: ApiError, kind: type[openai.APIStatusError]) -> None:
    transport = httpx.Client(transport=Answering(error))
    client = openai.OpenAI(api_key="x", base_url="http://x/v1", max_retries=0, http_client=transport)
    with client, pytest.raises(kind) as raised:
        client.models.list()
    assert raised.value.status_code == error.status
    assert (raised.value.code, raised.value.param, raised.value.type) == (error.code, error.param, error.kind)
    assert error.message in raised.value.message


def test_a_body_has_all_four_fields_and_takes_any_text() -> None:
    assert json.loads(errors.invalid('"\n\u0000é').body()) == {
        "error": {"message": '"\n\u0000é', "type": "invalid_request_error", "param": None, "code": None}
    }


def test_our_errors_have_one_root() -> None:
    for kind in (errors.ConfigError, errors.StoreUnavailable, ApiError):
        assert issubclass(kind, errors.LlmMeshError)
