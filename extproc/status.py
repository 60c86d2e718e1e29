"""What crosses from a worker to the admin port: a small file, written once a second."""

import msgspec


class Status(msgspec.Struct, frozen=True):
    """What a worker tells the admin port, once a second."""

    index: int
    pid: int
    time: float
    revision: str
    config_error: str
    serving: bool  # it takes requests
    store_up: bool
    models: list[str]
    models_down: list[str]
    backlog: int
