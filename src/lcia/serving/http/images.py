"""Images in requests: data URLs, and addresses where fetching is switched on."""

import asyncio
import base64
import binascii
import io
import ipaddress
import socket
from collections.abc import Sequence
from typing import Any

import httpx

from lcia.serving.http.api_error import ApiError

FORMATS = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP", "image/gif": "GIF"}
MAX_BYTES = 10 << 20
MAX_PIXELS = 40_000_000
"""Of all images of a request together; three bytes each while they are read."""

MAX_IMAGES = 16
"""Of a request."""

FETCH_TIMEOUT_S = 10.0
"""For all images of a request that are fetched."""

REDIRECTS = 3
PORTS = {"http": 80, "https": 443}
TUNNELS = tuple(map(ipaddress.ip_network, ("2002::/16", "2001::/32", "64:ff9b::/96")))
"""6to4, Teredo and NAT64: addresses of IPv6 that may lead to any address of IPv4."""


def refuse(message: str) -> ApiError:
    """Return the error for an image that is not taken."""
    return ApiError(400, f"'image_url': {message}", code="invalid_image", param="messages")


async def load_images(urls: Sequence[str], *, fetch: bool) -> list[bytes]:
    """Return the files of a request's images.

    Args:
        urls: data URLs, or addresses.
        fetch: whether addresses are fetched.

    Raises:
        ApiError: 400, there are too many, one is too large, of another kind, may not be fetched, or
            they take too long.
    """
    if len(urls) > MAX_IMAGES:
        raise refuse(f"there are {len(urls)} images; expected at most {MAX_IMAGES} a request.")
    if not fetch and not all(url.startswith("data:") for url in urls):
        raise refuse("this server fetches no images; send a data URL.")

    async def load() -> list[bytes]:
        return [decode_data_url(u) if u.startswith("data:") else await _fetch(u) for u in urls]

    try:
        return await asyncio.wait_for(load(), FETCH_TIMEOUT_S)
    except asyncio.TimeoutError as error:
        raise refuse(f"did not arrive within {FETCH_TIMEOUT_S:g} s.") from error


def decode_data_url(url: str) -> bytes:
    """Return the bytes of ``data:image/png;base64,...``.

    Raises:
        ApiError: 400, another type or encoding, too large, or not base64.
    """
    head, comma, data = url.partition(",")
    kind, _, encoding = head.removeprefix("data:").partition(";")
    if not comma or kind not in FORMATS or encoding != "base64":
        raise refuse(f"expected data:TYPE;base64,... with TYPE one of {', '.join(FORMATS)}.")
    if len(data) > 4 * MAX_BYTES // 3 + 4:
        raise refuse(f"is larger than {MAX_BYTES} bytes.")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise refuse(f"is not base64: {error}.") from error


def open_images(contents: Sequence[bytes]) -> list[Any]:
    """Return images as upright RGB ``PIL.Image``.

    Raises:
        ApiError: 400, one is damaged or of another kind, or together they would take too much
            memory: a small file may hold a large image.
    """
    from PIL import ImageOps

    pixels = sum(width * height for width, height in (_open(c).size for c in contents))
    if pixels > MAX_PIXELS:
        raise refuse(f"{pixels} pixels are too many; expected at most {MAX_PIXELS} a request.")
    try:
        return [ImageOps.exif_transpose(_open(content)).convert("RGB") for content in contents]
    except (OSError, ValueError, SyntaxError) as error:
        raise refuse("is damaged.") from error


def _open(content: bytes) -> Any:
    """Return an image of which only the head has been read."""
    from PIL import Image

    try:
        return Image.open(io.BytesIO(content), formats=list(FORMATS.values()))
    except Image.DecompressionBombError as error:
        raise refuse(f"expected at most {MAX_PIXELS} pixels.") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise refuse("is no image.") from error


async def _fetch(url: str) -> bytes:
    """Fetch an image from a public address; every redirect is checked like the first one."""
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=FETCH_TIMEOUT_S) as client:
            for _ in range(REDIRECTS + 1):
                address, options = await _checked(httpx.URL(url))
                async with client.stream("GET", address, **options) as answer:
                    if not answer.is_redirect:
                        return await _read(answer)
                    url = str(httpx.URL(url).join(answer.headers["location"]))
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise refuse(f"could not be fetched: {type(error).__name__}.") from error
    raise refuse(f"was redirected more than {REDIRECTS} times.")


async def _checked(url: httpx.URL) -> tuple[httpx.URL, dict[str, Any]]:
    """Return the very address that was checked, as names may change what they mean, and options."""
    port = PORTS.get(url.scheme)
    if port is None or not url.host or url.userinfo or url.port not in (None, port):
        raise refuse("expected http://HOST/... or https://HOST/... on its usual port.")
    try:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(url.host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise refuse("its host has no address.") from error
    addresses = [str(entry[4][0]).partition("%")[0] for entry in found]
    if not addresses or not all(map(is_public, addresses)):
        raise refuse("its host is not public.")
    headers = {"Host": url.netloc.decode("ascii"), "Accept": ", ".join(FORMATS)}
    options = {"headers": headers, "extensions": {"sni_hostname": url.host}}
    return url.copy_with(host=addresses[0]), options


def is_public(address: str) -> bool:
    """Tell whether an address belongs to the public internet; tunnels to other ones do not."""
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return is_public(str(parsed.ipv4_mapped))
        if any(parsed in tunnel for tunnel in TUNNELS):
            return False
    return parsed.is_global and not parsed.is_multicast


async def _read(answer: httpx.Response) -> bytes:
    if answer.status_code != 200:
        raise refuse(f"its server answers {answer.status_code}.")
    kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in FORMATS:
        raise refuse(f"its server sends {kind[:50] or 'no type'}; expected an image.")
    content = bytearray()
    async for piece in answer.aiter_bytes(1 << 16):
        content += piece
        if len(content) > MAX_BYTES:
            raise refuse(f"is larger than {MAX_BYTES} bytes.")
    return bytes(content)
