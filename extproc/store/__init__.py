"""The two places that hold what outlives a request: Redis, and memory when Redis is away."""

from extproc.store.memory import MemoryStore
from extproc.store.redis import RedisStore

__all__ = ["MemoryStore", "RedisStore"]
