"""One error tree, and the one place where an error becomes an answer.

Errors that a client sees are `ApiError`s with OpenAI's status, type and code words; `body()` gives the JSON that
the OpenAI SDKs parse. Foreign exceptions are translated where the library is called.
"""

import msgspec

LONGEST_MESSAGE = 1000  # characters: an error may name what the client sent, and not send all of it back


class LlmMeshError(Exception):
    """Base of all errors of this package."""


class ConfigError(LlmMeshError):
    """The configuration is unusable. The message starts with file:line."""


class StoreUnavailable(LlmMeshError):  # noqa: N818  a state, named for what the caller must decide on
    """Redis did not answer in time, or is not there."""


class StoreUnsureError(StoreUnavailable):
    """As above, but the command was on its way: it may have been done."""


class ApiError(LlmMeshError):
    """An answer in OpenAI's error shape."""

    def __init__(
        self,
        status: int,
        code: str | None,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        retry_after_ms: int = 0,
        why: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message if len(message) <= LONGEST_MESSAGE else message[:LONGEST_MESSAGE] + " …"
        self.kind = kind
        self.param = param
        self.retry_after_ms = retry_after_ms
        self.why = why  # a caller was not let in, as the metric says it: for us, not for the caller

    def body(self) -> bytes:
        return msgspec.json.encode(
            {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}
        )


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, code, message, param=param)


def invalid_api_key(message: str, why: str) -> ApiError:
    return ApiError(401, "invalid_api_key", message, why=why)


_SERVED = (
    "POST /v1/chat/completions, /v1/completions, /v1/embeddings and /v1/responses; GET /v1/models and /v1/models/{id}"
)


def not_found(method: str, path: str) -> ApiError:
    return ApiError(404, "unknown_url", f"Unknown request URL: {method} {path}. Served are {_SERVED}.")


def model_not_found(model: str) -> ApiError:
    return ApiError(
        404,
        "model_not_found",
        f"The model `{model}` does not exist or you do not have access to it.",
        param="model",
    )


def too_large(limit_bytes: int) -> ApiError:
    return ApiError(413, "request_too_large", f"The request body is larger than {limit_bytes} bytes.")


def unsupported_media(message: str) -> ApiError:
    return ApiError(415, "unsupported_media_type", message)


def unavailable(message: str, retry_after_ms: int = 1000) -> ApiError:
    return ApiError(503, "service_unavailable", message, kind="server_error", retry_after_ms=retry_after_ms)
