"""The settings of a server, and API keys: who may ask for what.

An assistant's keys stand in ``keys.json`` in its folder: name, scopes and the SHA-256 of each. A
key is 256 random bits, so its hash needs no salt and no slow function: nobody guesses it.
"""

import hashlib
import hmac
import ipaddress
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from lcia.data.sample import NAME
from lcia.errors import ConfigError, StoreError
from lcia.files import read_sealed, write_sealed
from lcia.serving.engine.limits import EngineLimits

FILE = "keys.json"
SCHEMA = 1
PREFIX = "lcia-"

SCOPES: Mapping[str, str] = {
    "chat": "ask, and see the models",
    "feedback": "see receipts of answers and say something about them",
    "learn": "files, jobs and the inbox; see releases",
    "admin": "release and roll back; metrics",
}
"""What a key may be made for. None holds another."""

OPEN = ("/", "/healthz", "/readyz")
"""What needs no key: the page, which holds no data, and the probes."""

_PATHS: tuple[tuple[str, str], ...] = (
    ("/v1/chat/completions", "chat"),
    ("/v1/completions", "chat"),
    ("/v1/responses", "chat"),
    ("/v1/messages", "chat"),
    ("/v1/route", "chat"),
    ("/v1/models", "chat"),
    ("/v1/store", "chat"),
    ("/openapi.json", "chat"),
    ("/v1/feedback", "feedback"),
    ("/v1/lcia/receipts", "feedback"),
    ("/v1/lcia/inbox", "learn"),
    ("/v1/files", "learn"),
    ("/v1/fine_tuning/jobs", "learn"),
    ("GET /v1/lcia/releases", "learn"),
    ("/v1/lcia/releases", "admin"),
    ("/metrics", "admin"),
)
"""Path to scope, with everything below it; with a method, for that method. The first counts."""


def is_open(path: str) -> bool:
    """Tell whether a path needs no key."""
    return path in OPEN or path.startswith("/page/")


def scope_of(method: str, path: str) -> str | None:
    """Return the scope that a request needs; None where no scope suffices."""
    asked = "GET" if method == "HEAD" else method
    for known, scope in _PATHS:
        verb, _, place = known.rpartition(" ")
        if verb in ("", asked) and (path == place or path.startswith(f"{place}/")):
            return scope
    return None


@dataclass(frozen=True, kw_only=True)
class Key:
    """An API key, without what opens it.

    Attributes:
        name: unique among an assistant's keys, those that were revoked too.
        scopes: what it may be used for.
        sha256: of the key, in hex.
        created_at: in seconds since 1970.
        revoked_at: the same; None while it may be used.
    """

    name: str
    scopes: tuple[str, ...]
    sha256: str
    created_at: int
    revoked_at: int | None = None


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who asks.

    Attributes:
        name: of the key; None for one of a file of keys, or where none is needed.
        scopes: what may be asked for; all of ``SCOPES`` without a name.
    """

    name: str | None = None
    scopes: tuple[str, ...] = tuple(SCOPES)

    def may(self, method: str, path: str) -> bool:
        """Tell whether a request is within the caller's scopes."""
        return self.name is None or scope_of(method, path) in self.scopes


class KeyRing:
    """The keys of one assistant, read again when somebody changes them.

    Args:
        root: the assistant's folder.
    """

    def __init__(self, root: Path) -> None:
        self._path = root / FILE
        self._seen: tuple[int, ...] | None = None
        self._keys: tuple[Key, ...] = ()

    @property
    def keys(self) -> tuple[Key, ...]:
        """All keys, in the order in which they were made.

        Raises:
            StoreError: the file is damaged, or of a later lcia.
        """
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return ()
        stamp = (found.st_ino, found.st_mtime_ns, found.st_size)
        if stamp != self._seen:
            self._keys, self._seen = _read(self._path), stamp
        return self._keys

    @property
    def active(self) -> tuple[Key, ...]:
        """The keys that were not revoked."""
        return tuple(key for key in self.keys if key.revoked_at is None)

    def add(self, name: str, scopes: Sequence[str]) -> str:
        """Make a key and return it; nothing that is stored gives it back.

        Raises:
            ConfigError: the name was used, or cannot be; an unknown scope, or none.
        """
        if not NAME.fullmatch(name):
            raise ConfigError(f"key name '{name}': expected letters, digits, '.', '_' or '-'.")
        for scope in scopes:
            if scope not in SCOPES:
                raise ConfigError(
                    f"--scope: {scope!r} is none; expected some of {', '.join(SCOPES)}."
                )
        if not scopes:
            raise ConfigError(f"--scope: expected some of {', '.join(SCOPES)}.")
        key = PREFIX + secrets.token_urlsafe(32)
        with self._changing():
            if any(known.name == name for known in self.keys):
                raise ConfigError(
                    f"key name '{name}': was used before; receipts would not tell them apart."
                )
            made = Key(
                name=name,
                scopes=tuple(dict.fromkeys(scopes)),
                sha256=hashlib.sha256(key.encode()).hexdigest(),
                created_at=int(time.time()),
            )
            self._write((*self.keys, made))
        return key

    def revoke(self, name: str) -> None:
        """Let a key open nothing any more; servers heed it with their next request.

        Raises:
            ConfigError: there is none of that name, or it was revoked.
        """
        self._find(name)  # what is refused leaves no lock file behind
        with self._changing():
            self._find(name)
            now = int(time.time())
            self._write(
                Key(**{**vars(key), "revoked_at": now}) if key.name == name else key
                for key in self.keys
            )

    def _find(self, name: str) -> None:
        if name not in {key.name for key in self.active}:
            known = ", ".join(key.name for key in self.active) or "none"
            raise ConfigError(f"There is no key '{name}' in use. Keys: {known}.")

    def _changing(self) -> FileLock:
        return FileLock(self._path.with_name(f".{FILE}.lock"))

    def _write(self, keys: Iterable[Key]) -> None:
        write_sealed(self._path, {"schema": SCHEMA, "keys": [vars(key) for key in keys]})


class Keys:
    """What opens a server: keys of a file, which may do all, and those of an assistant.

    Args:
        full: keys that may do everything.
        ring: the assistant's; None: it has none.
    """

    def __init__(self, full: Sequence[str] = (), ring: KeyRing | None = None) -> None:
        self._full = [hashlib.sha256(key.encode()).hexdigest() for key in full]
        self._ring = ring

    @property
    def needed(self) -> bool:
        """Whether a key is needed: there is one, or was."""
        return bool(self._full or (self._ring is not None and self._ring.keys))

    def caller(self, authorization: str) -> Caller | None:
        """Return whom the ``Authorization`` header names; None for nobody.

        Raises:
            StoreError: the assistant's keys cannot be read.
        """
        scheme, _, key = authorization.partition(" ")
        digest = hashlib.sha256(key.strip().encode()).hexdigest()
        active = self._ring.active if self._ring is not None else ()
        # Every key is compared, each in constant time: neither tells how close a guess was.
        full = [hmac.compare_digest(digest, known) for known in self._full]
        named = [known for known in active if hmac.compare_digest(digest, known.sha256)]
        if scheme.lower() != "bearer":
            return None
        if any(full):
            return Caller()
        return Caller(name=named[0].name, scopes=named[0].scopes) if named else None


def _read(path: Path) -> tuple[Key, ...]:
    record: Mapping[str, Any] = read_sealed(path)
    try:
        if record["schema"] == SCHEMA:
            return tuple(Key(**{**key, "scopes": tuple(key["scopes"])}) for key in record["keys"])
    except (KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path}: expected keys that lcia wrote: {error!r}.") from error
    raise StoreError(f"{path}: schema {record['schema']!r}; this lcia reads {SCHEMA}.")


@dataclass(frozen=True, kw_only=True)
class AccessConfig:
    """Who may ask, and how much may be sent.

    Attributes:
        host: address the server listens on.
        port: its port; 0 chooses a free one.
        api_keys: any of them opens the server for everything.
        assistant: folder of the assistant whose own keys open it, too, each for what it is made
            for. Without any key the server listens on loopback only.
        max_body_bytes: longest request body; an image is a third longer in a data URL.
        body_timeout_s: longest time a body may take to arrive, in seconds.
        drain_s: how long running answers may go on after SIGTERM, in seconds.
        cors_origins: web pages of these origins may ask from a browser, ``*`` those of all; none:
            only the server's own page.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    assistant: Path | None = None
    max_body_bytes: int = 8 << 20
    body_timeout_s: float = 30.0
    drain_s: float = 60.0
    cors_origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not is_loopback(self.host) and not self.keys().needed:
            raise ConfigError(
                f"--host {self.host}: reaches beyond this machine, which needs a key. Make one: "
                "lcia keys add STORE NAME --scope chat. Or write one per line to a file and say "
                "--api-key-file FILE, or listen on 127.0.0.1."
            )

    def keys(self) -> Keys:
        """Return what opens the server."""
        ring = KeyRing(self.assistant) if self.assistant is not None else None
        return Keys(self.api_keys, ring)


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """What ``lcia serve`` does.

    Attributes:
        access: who may ask.
        limits: what the engine may use.
        max_new_tokens: longest answer in tokens, and the default where a request names none.
        timeout_s: seconds until an answer is given up, waiting included.
        poll_s: seconds between two looks for a new version.
        fetch_images: whether images may be fetched from other servers.
        log_prompts: whether prompts and answers are logged.
    """

    access: AccessConfig = field(default_factory=AccessConfig)
    limits: EngineLimits = field(default_factory=EngineLimits)
    max_new_tokens: int = 512
    timeout_s: float = 300.0
    poll_s: float = 1.0
    fetch_images: bool = False
    log_prompts: bool = False


def is_loopback(host: str) -> bool:
    """Tell whether an address is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_api_keys(path: Path) -> tuple[str, ...]:
    """Return the keys in a file: one per line; blank lines and ``#`` comments are skipped.

    Raises:
        ConfigError: the file cannot be read, is readable by everyone, or holds no usable key.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        readable_by_all = path.stat().st_mode & 0o004
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}.") from error
    if readable_by_all:
        raise ConfigError(f"{path}: every user can read it. Protect it: chmod 600 {path}.")
    keys = tuple(k for line in lines if (k := line.strip()) and not k.startswith("#"))
    if not keys:
        raise ConfigError(f"{path}: holds no key; expected one per line.")
    for number, key in enumerate(keys, start=1):
        if len(key) < 16 or not key.isascii() or " " in key:
            raise ConfigError(
                f"{path}: key {number} is not usable; expected at least 16 ASCII characters "
                "without spaces. Make one: python -c 'import secrets; "
                "print(secrets.token_urlsafe(32))'."
            )
    return keys
