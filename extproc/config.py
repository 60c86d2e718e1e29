"""The one configuration file: models, aliases, tasks, prices, limits, cache policy.

Read once into frozen structs (`Config`), then compiled into look-up tables (`Catalogue`) that requests use. Unknown
fields and dangling names are refused, each with file:line. A reload swaps the catalogue by one assignment; a request
keeps the one that it began with. This module reads bytes that it is given: who reads files and when is worker.py's.
"""

import hashlib
import re
from fnmatch import translate
from typing import Annotated, Any, Literal, get_args

import msgspec
import yaml

from extproc.admission import Limits
from extproc.errors import ConfigError

Endpoint = Literal["chat", "completions", "responses", "embeddings"]
ENDPOINTS: tuple[Endpoint, ...] = get_args(Endpoint)
CachePolicy = Literal["deterministic", "always", "off"]
Priority = Literal["low", "normal", "high"]
PRIORITIES: tuple[Priority, ...] = get_args(Priority)

Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Dollars = Annotated[float, msgspec.Meta(ge=0, le=1_000_000_000)]
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


class PriceConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """US dollars per million tokens. Prompt tokens out of vLLM's prefix cache may cost less."""

    input: Dollars
    output: Dollars = 0.0
    cached_input: Dollars | None = None


class ModelCacheConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`deterministic` stores answers to requests with temperature 0 or a seed; `always` all; `off` none."""

    policy: CachePolicy = "deterministic"
    ttl_seconds: Positive = 3600


class ModelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Name
    context_tokens: Positive
    price: PriceConfig
    served_name: str = ""  # what the backend calls it; default: name
    endpoints: tuple[Endpoint, ...] = ("chat", "completions", "responses")
    typical_completion_tokens: Positive = 256  # reserved when the request names no maximum
    tokens_per_byte: Annotated[float, msgspec.Meta(gt=0, le=2)] = 0.3  # first guess; receipts refine it
    cache: ModelCacheConfig = ModelCacheConfig()
    fallbacks: tuple[str, ...] = ()  # tried in order when this one is down or the prompt is too long
    max_in_flight_per_replica: Count = 0  # beyond it 503, for callers of low priority first (pressure.py); 0 = no limit


class AliasConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A shell-style pattern (`gpt-4*`) of model names that clients may send. The first that matches wins."""

    pattern: str
    model: str


class LimitsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rates per user; bursts default to one minute's worth; 0 = no limit."""

    requests_per_minute: Count = 100
    burst_requests: Count | None = None
    tokens_per_minute: Count = 0
    burst_tokens: Count | None = None
    budget_usd_per_month: Dollars = 0.0  # per tenant
    max_in_flight: Count = 0  # per key; of token callers per user


class TenantConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    limits: LimitsConfig | None = None  # instead of those of all
    priority: Priority = "normal"  # who is turned away first when a model is full


class JwtConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Callers whose token the gateway has verified: only with this section are they taken. Their limits are those of
    their tenant."""

    models: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = ("*",)  # public names; * = all
    max_in_flight: Count | None = None  # per user, instead of the tenant's


class CacheConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    max_entry_bytes: Count = 262_144
    max_tenant_bytes: Count = 268_435_456


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    models: Annotated[tuple[ModelConfig, ...], msgspec.Meta(min_length=1)]
    default_model: str
    aliases: tuple[AliasConfig, ...] = ()
    tasks: dict[str, str] = {}
    limits: LimitsConfig = LimitsConfig()
    tenants: tuple[TenantConfig, ...] = ()
    jwt: JwtConfig | msgspec.UnsetType = msgspec.UNSET
    cache: CacheConfig = CacheConfig()
    max_body_bytes: Positive = 4_194_304  # Envoy's request buffer is set from the same number
    key_grace_seconds: Count = 300  # how long known keys are honoured while Redis is away
    down_seconds: Positive = 5  # how long a model without healthy upstream is passed over before a new try
    reservation_seconds: Positive = 3600  # older reservations are closed as charged; longer than any stream


class Model(msgspec.Struct, frozen=True):
    """A model as requests see it. Prices are micro-dollars per million tokens."""

    name: str
    served_name: str
    context_tokens: int
    typical_completion_tokens: int
    tokens_per_byte: float
    endpoints: frozenset[str]
    fallbacks: tuple[str, ...]
    input_price: int
    output_price: int
    cached_input_price: int
    cache_policy: CachePolicy
    cache_ttl_ms: int
    max_in_flight_per_replica: int = 0


class Catalogue(msgspec.Struct, frozen=True):
    """The compiled configuration: every look-up that a request makes is a dictionary access or a short scan."""

    revision: str
    config: Config
    models: dict[str, Model]  # by public name, in the file's order
    names: dict[str, Model]  # by public and by served name
    aliases: tuple[tuple[re.Pattern[str], Model], ...]
    tasks: dict[str, Model]
    default: Model
    limits: Limits
    tenant_limits: dict[str, Limits]
    priorities: dict[str, Priority]  # of tenants

    def limits_of(self, tenant: str, overrides: dict[str, int]) -> Limits:
        limits = self.tenant_limits.get(tenant, self.limits)
        return override(limits, overrides) if overrides else limits

    def priority_of(self, tenant: str, own: str) -> Priority:
        """A key's own, else its tenant's. One that this version does not know counts as none."""
        for known in PRIORITIES:
            if own == known:
                return known
        return self.priorities.get(tenant, "normal")


def override(limits: Limits, overrides: dict[str, int]) -> Limits:
    """Limits with a key's own figures; a rate without its burst brings a burst of one minute's worth.

    Figures that this version does not know are left out: a newer one may have written the key.
    """
    changed = {name: value for name, value in overrides.items() if name in Limits.__struct_fields__}
    for rate, burst in (("requests_per_minute", "burst_requests"), ("tokens_per_minute", "burst_tokens")):
        if rate in changed:
            changed.setdefault(burst, changed[rate])
    return msgspec.structs.replace(limits, **changed)


def load(text: bytes, filename: str) -> Catalogue:
    """Bytes of the YAML file -> Catalogue. Raises ConfigError, whose message starts with `filename:line: `."""
    try:
        node = yaml.compose(text, Loader=yaml.CSafeLoader)
        _refuse_duplicate_keys(node, filename)
        data = yaml.load(text, Loader=yaml.CSafeLoader)  # the C build of the safe loader
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{filename}:{line}: {error.problem or error}") from error
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        # beside its own errors PyYAML lets out what int(), strptime and the like say of an odd scalar
        raise ConfigError(f"{filename}:1: {type(error).__name__}: {error}") from error
    try:
        config = msgspec.convert(data, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(_located(str(error), node, filename)) from error
    mistakes = [f"{filename}:{_line(node, path)}: {message}" for path, message in _contradictions(config)]
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return _compile(config, hashlib.sha256(text).hexdigest()[:12])


def _compile(config: Config, revision: str) -> Catalogue:
    models = {m.name: _model(m) for m in config.models}
    return Catalogue(
        revision=revision,
        config=config,
        models=models,
        names={m.served_name: m for m in models.values()} | models,
        aliases=tuple((re.compile(translate(a.pattern)), models[a.model]) for a in config.aliases),
        tasks={task: models[name] for task, name in config.tasks.items()},
        default=models[config.default_model],
        limits=_limits(config.limits),
        tenant_limits={t.name: _limits(t.limits) for t in config.tenants if t.limits is not None},
        priorities={t.name: t.priority for t in config.tenants},
    )


def _model(m: ModelConfig) -> Model:
    cached = m.price.input if m.price.cached_input is None else m.price.cached_input
    return Model(
        name=m.name,
        served_name=m.served_name or m.name,
        context_tokens=m.context_tokens,
        typical_completion_tokens=m.typical_completion_tokens,
        tokens_per_byte=m.tokens_per_byte,
        endpoints=frozenset(m.endpoints),
        fallbacks=tuple(m.fallbacks),
        input_price=_micros(m.price.input),
        output_price=_micros(m.price.output),
        cached_input_price=_micros(cached),
        cache_policy=m.cache.policy,
        cache_ttl_ms=m.cache.ttl_seconds * 1000,
        max_in_flight_per_replica=m.max_in_flight_per_replica,
    )


def _limits(c: LimitsConfig) -> Limits:
    return Limits(
        requests_per_minute=c.requests_per_minute,
        burst_requests=c.requests_per_minute if c.burst_requests is None else c.burst_requests,
        tokens_per_minute=c.tokens_per_minute,
        burst_tokens=c.tokens_per_minute if c.burst_tokens is None else c.burst_tokens,
        budget_micros=_micros(c.budget_usd_per_month),
        max_in_flight=c.max_in_flight,
    )


def _micros(dollars: float) -> int:
    return round(dollars * 1_000_000)


Path = list[str | int]


def _contradictions(config: Config) -> list[tuple[Path, str]]:
    """Names that point nowhere or twice, as (path in the file, message)."""
    found: list[tuple[Path, str]] = []
    owner: dict[str, str] = {}
    known = {m.name for m in config.models}
    for i, m in enumerate(config.models):
        here: Path = ["models", i]
        for name in {m.name, m.served_name or m.name}:
            if owner.setdefault(name, m.name) != m.name or (name == m.name and _count(config, name) > 1):
                found.append(([*here, "name"], f"two models are called `{name}`"))
        found += [
            ([*here, "fallbacks", k], f"fallback `{f}` is no other model of this file")
            for k, f in enumerate(m.fallbacks)
            if f not in known or f == m.name
        ]
        if m.typical_completion_tokens > m.context_tokens and set(m.endpoints) != {"embeddings"}:
            words = f"typical_completion_tokens ({m.typical_completion_tokens}) is larger than context_tokens"
            found.append(([*here, "typical_completion_tokens"], words))
    tenants = [t.name for t in config.tenants]
    found += [
        (["tenants", i, "name"], f"tenant `{name}` is given twice")
        for i, name in enumerate(tenants)
        if name in tenants[:i]
    ]
    found += [
        (["aliases", i, "model"], f"alias points to `{a.model}`, which is no model of this file")
        for i, a in enumerate(config.aliases)
        if a.model not in known
    ]
    found += [
        (["tasks", task], f"task `{task}` points to `{name}`, which is no model of this file")
        for task, name in config.tasks.items()
        if name not in known
    ]
    if isinstance(config.jwt, JwtConfig):
        found += [
            (["jwt", "models", i], f"`{name}` is no model of this file")
            for i, name in enumerate(config.jwt.models)
            if name not in known | {"*"}
        ]
    if config.default_model not in known:
        found.append((["default_model"], f"`{config.default_model}` is no model of this file"))
    return found


def _count(config: Config, name: str) -> int:
    return sum(m.name == name for m in config.models)


def _refuse_duplicate_keys(node: yaml.Node | None, filename: str, done: set[int] | None = None) -> None:
    """Each node once: YAML's aliases can make a tree of any size, or a ring, out of a few lines."""
    done = set() if done is None else done
    if id(node) in done:
        return
    done.add(id(node))
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(f"{filename}:{key.start_mark.line + 1}: a field's name must be plain text")
            if key.value in seen:
                raise ConfigError(f"{filename}:{key.start_mark.line + 1}: `{key.value}` is given twice")
            seen.add(key.value)
            _refuse_duplicate_keys(value, filename, done)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_duplicate_keys(item, filename, done)


_AT = re.compile(r"^(?P<what>.*?)(?: - at `(?:key` in `)?\$(?P<path>.*?)`)?$", re.DOTALL)
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")
_FIELD = re.compile(r"unknown field `([^`]+)`")


def _located(message: str, node: yaml.Node | None, filename: str) -> str:
    """A msgspec message (`… - at `$.models[0].price``) -> `file:line: … (models[0].price)`."""
    match = _AT.match(message)
    what, where = (match["what"], match["path"] or "") if match else (message, "")
    path: Path = [int(i) if i.isdigit() else name or i for name, i in _STEP.findall(where)]
    field = _FIELD.search(what)
    line = _line(node, [*path, field[1]] if field else path)
    return f"{filename}:{line}: {what}" + (f" (in {where.lstrip('.')})" if where else "")


def _line(node: Any, path: Path) -> int:
    """The 1-based line of the deepest node on `path` that is there."""
    line = node.start_mark.line + 1 if node is not None else 1
    for step in path:
        if isinstance(node, yaml.MappingNode):
            pair = next((p for p in node.value if p[0].value == step), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            line = node.start_mark.line + 1
        else:
            break
    return int(line)
