"""Pictures in requests: data URLs, and addresses where fetching is switched on."""

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
"""Of all pictures of a request together; three bytes each while they are read."""

FETCH_TIMEOUT_S = 10.0
REDIRECTS = 3
PORTS = {"http": 80, "https": 443}


def refuse(message: str) -> ApiError:
    """Return the error for a picture that is not taken."""
    return ApiError(400, f"'image_url': {message}", code="invalid_image", param="messages")


async def load_images(urls: Sequence[str], *, fetch: bool) -> list[bytes]:
    """Return the files of a request's pictures.

    Args:
        urls: data URLs, or addresses.
        fetch: whether addresses are fetched.

    Raises:
        ApiError: 400, a picture is too large, of another kind, or may not be fetched.
    """
    contents = []
    for url in urls:
        if url.startswith("data:"):
            contents.append(decode_data_url(url))
        elif not fetch:
            raise refuse("this server fetches no pictures; send a data URL.")
        else:
            try:
                contents.append(await asyncio.wait_for(_fetch(url), FETCH_TIMEOUT_S))
            except asyncio.TimeoutError as error:
                raise refuse(f"did not arrive within {FETCH_TIMEOUT_S:g} s.") from error
    return contents


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


def open_pictures(contents: Sequence[bytes]) -> list[Any]:
    """Return pictures as upright RGB ``PIL.Image``.

    Raises:
        ApiError: 400, one is damaged or of another kind, or together they would take too much
            memory: a small file may hold a large picture.
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
    """Return a picture of which only the head has been read."""
    from PIL import Image

    try:
        return Image.open(io.BytesIO(content), formats=list(FORMATS.values()))
    except Image.DecompressionBombError as error:
        raise refuse(f"expected at most {MAX_PIXELS} pixels.") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise refuse("is no picture.") from error


async def _fetch(url: str) -> bytes:
    """Fetch a picture from a public address; every redirect is checked like the first one."""
    async with httpx.AsyncClient(trust_env=False, timeout=FETCH_TIMEOUT_S) as client:
        for _ in range(REDIRECTS + 1):
            request = await _pinned(client, url)
            try:
                answer = await client.send(request, stream=True)
            except httpx.HTTPError as error:
                raise refuse(f"could not be fetched: {type(error).__name__}.") from error
            try:
                if not answer.is_redirect:
                    return await _read(answer)
                url = str(httpx.URL(url).join(answer.headers["location"]))
            finally:
                await answer.aclose()
    raise refuse(f"was redirected more than {REDIRECTS} times.")


async def _pinned(client: httpx.AsyncClient, url: str) -> httpx.Request:
    """Return a request to the very address that was checked: names may change what they mean."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise refuse("is no address.") from error
    port = parsed.port or PORTS.get(parsed.scheme)
    if parsed.scheme not in PORTS or not parsed.host or parsed.userinfo:
        raise refuse("expected http://HOST/... or https://HOST/....")
    if port != PORTS[parsed.scheme]:
        raise refuse("expected the usual port of http or https.")
    address = await _public_address(parsed.host, port)
    host = f"[{address}]" if ":" in address else address
    return client.build_request(
        "GET",
        parsed.copy_with(host=host),
        headers={"Host": parsed.netloc.decode("ascii"), "Accept": ", ".join(FORMATS)},
        extensions={"sni_hostname": parsed.host},
    )


async def _public_address(host: str, port: int) -> str:
    """Return an address of ``host``, all of whose addresses must be public."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise refuse("its host has no address.") from error
    addresses = [str(entry[4][0]).partition("%")[0] for entry in found]
    if not addresses or not all(map(is_public, addresses)):
        raise refuse("its host is not public.")
    return addresses[0]


def is_public(address: str) -> bool:
    """Tell whether an address belongs to the public internet, whatever it is wrapped in."""
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        inner = [parsed.ipv4_mapped, parsed.sixtofour, *(parsed.teredo or ())]
        if parsed in ipaddress.ip_network("64:ff9b::/96"):  # NAT64
            inner.append(ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF))
        if any(one is not None and not is_public(str(one)) for one in inner):
            return False
        if parsed.ipv4_mapped is not None:
            return True
    return parsed.is_global and not parsed.is_multicast


async def _read(answer: httpx.Response) -> bytes:
    if answer.status_code != 200:
        raise refuse(f"its server answers {answer.status_code}.")
    kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in FORMATS:
        raise refuse(f"its server sends {kind[:50] or 'no type'}; expected a picture.")
    content = bytearray()
    try:
        async for piece in answer.aiter_bytes(1 << 16):
            content += piece
            if len(content) > MAX_BYTES:
                raise refuse(f"is larger than {MAX_BYTES} bytes.")
    except httpx.HTTPError as error:
        raise refuse("broke off while it was fetched.") from error
    return bytes(content)
