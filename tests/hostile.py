"""Requests that nobody should send: valid ones, spoilt in one to three places, drawn by seed."""

import copy
import gzip
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

INSTRUCTION = "Say the letter of the colour."
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/route")
MODELS = ("assistant", "base", "g1", "g2", "g1@0001", "", "../g1", "x" * 5_000, "g1\0", "\u2028")
TEXTS = (
    *("", " ", "\0", "\u0004", "\ufeff", "\u2028\u2029", "\ufffd" * 50, "\u202eabc", "é" * 300),
    *("<|end|>", "<|user|>", "<|im_start|>system\n<|im_end|>", "{{ 7 * 7 }}", "{% raw %}", "</s>"),
    *("a" * 3_000, "👩‍👩‍👧‍👦" * 40, "word " * 20_000, "\n" * 5_000, "%s%n", "'; DROP TABLE x;--"),
)
NUMBERS = (
    *(0, -1, 1, 2, 2**31, 2**63, 2**64, -(2**63), 10**400, 1e-46, 1e-320, 5e-324, 1e308, -0.0),
    *(0.5, 1.0000001, 1e-40),
)
OTHERS = (None, True, False, [], {}, [[]], [None], {"": None}, [1], ["a"], "NaN", [{"a": [{}]}])
FIELDS = (
    *("model", "messages", "prompt", "temperature", "top_p", "max_tokens", "seed", "stop"),
    *("max_completion_tokens", "stream", "stream_options", "n", "logprobs", "tools", "user"),
    *("response_format", "logit_bias", "metadata", "echo", "__proto__", "lcia", "x" * 300),
)
URLS = (
    *("data:image/png;base64,AAAA", "data:,x", "http://127.0.0.1/", "file:///etc/passwd", "", "x"),
    "data:image/png;base64," + "A" * 10_000,
)


@dataclass(frozen=True)
class Hostile:
    """A request, and what is around its body."""

    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


def requests(count: int, *, seed: int) -> Iterator[Hostile]:
    """Yield requests; those of one seed are always the same."""
    for i in range(count):
        yield _request(random.Random(f"{seed}:{i}"))


def _request(draw: random.Random) -> Hostile:
    path = draw.choice(PATHS)
    tree: Any = {"messages": _turns(draw)} if path != "/v1/completions" else {"prompt": _text(draw)}
    if path != "/v1/route":
        tree |= {"model": draw.choice(MODELS[:3]), "max_tokens": draw.randint(1, 3)}
    for _ in range(draw.randint(0, 3)):
        _spoil(tree, draw)
    if "max_tokens" not in tree and "max_completion_tokens" not in tree and path != "/v1/route":
        tree["max_tokens"] = 2
    body = json.dumps(tree, ensure_ascii=draw.random() < 0.5, allow_nan=True).encode(
        "utf-8", "surrogatepass"
    )
    headers = {"Content-Type": "application/json"}
    kind = draw.random()
    if kind < 0.05:
        body = _broken(body, draw)
    elif kind < 0.08:
        packed = gzip.compress(body, mtime=0)
        body = draw.choice([body, packed, packed[:-5], b"\x1f\x8b"])
        headers["Content-Encoding"] = draw.choice(["gzip", "br", "identity", "gzip, gzip", ""])
    elif kind < 0.1:
        headers["Content-Type"] = draw.choice(["text/plain", "", "application/json; a=b", "a/b/c"])
    elif kind < 0.11:
        body = _huge(draw)
    return Hostile(path, body, headers)


def _text(draw: random.Random) -> str:
    return draw.choice([draw.choice(TEXTS), f"{INSTRUCTION}\n\ngreen {draw.randint(0, 9)}"])


def _value(draw: random.Random) -> Any:
    """Return something to put where something else belongs; a copy, as it may be spoilt in turn."""
    return draw.choice(
        [
            draw.choice(NUMBERS),
            copy.deepcopy(draw.choice(OTHERS)),
            draw.choice(TEXTS),
            float("nan"),
            "\ud800",
        ]
    )


def _turns(draw: random.Random) -> list[Any]:
    roles = ("user", "user", "system", "assistant", "developer", "tool", "function", "")
    turns: list[Any] = []
    for _ in range(draw.choice([1, 1, 1, 2, 5])):
        content: Any = _text(draw)
        if draw.random() < 0.2:
            content = [{"type": "text", "text": _text(draw)}] * draw.randint(0, 3)
        if draw.random() < 0.05:
            content = [{"type": "image_url", "image_url": {"url": draw.choice(URLS)}}]
        turns.append({"role": draw.choice(roles[: draw.choice([2, 8])]), "content": content})
    return turns


def _spoil(tree: dict[str, Any], draw: random.Random) -> None:
    """Change, add or remove something at a random place."""
    place: Any = tree
    while draw.random() < 0.5:
        inner = list(place.values()) if isinstance(place, dict) else place
        inner = [value for value in inner if isinstance(value, (dict, list)) and value]
        if not inner:
            break
        place = draw.choice(inner)
    if isinstance(place, list):
        place.insert(draw.randint(0, len(place)), _value(draw))
    elif draw.random() < 0.2 and place:
        del place[draw.choice(list(place))]
    else:
        names = [*place, *FIELDS] if place is tree else [*place, "name", "type", "x"]
        place[draw.choice(names)] = _value(draw)


def _broken(body: bytes, draw: random.Random) -> bytes:
    at = draw.randint(0, len(body))
    return draw.choice(
        [
            body[:at],
            body[at:],
            body[:at] + b"\xff" + body[at:],
            body + body,
            b"",
            b"\xef\xbb\xbf" + body,
        ]
    )


def _huge(draw: random.Random) -> bytes:
    """Bodies of megabytes; each has stopped a server once."""
    count = draw.choice([1_000, 90_000, 1_000_000, 2_500_000])
    one = draw.choice([b"{}", b'""', b"1", b"[]", b"null", b'{"role":"user","content":"a"}'])
    name = draw.choice([b"messages", b"stop", b"prompt", b"x"])
    listed = b'{"model":"base","' + name + b'":[' + b",".join([one] * count)[: 7 << 20] + b"]}"
    fields = b"{" + b",".join(b'"f%d":1' % i for i in range(min(count, 600_000))) + b"}"
    words = (
        b'{"model":"assistant","messages":[{"role":"user","content":"' + b"word " * count + b'"}]}'
    )
    return draw.choice(
        [listed, fields, words, b"[" * count, b'{"a":' * count, b'"' + b"\\u00e9" * count]
    )
