"""The settings of a server."""

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from lcia.errors import ConfigError
from lcia.serving.engine.limits import EngineLimits
from lcia.serving.keys import KeyRing, Keys


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
