"""Who may not ask is refused, whatever they send; everything else goes on."""

import http.client
import json
import logging
import socket
import time
from urllib.parse import urlparse

import httpx
import openai
import pytest

from lcia.errors import ConfigError
from lcia.serving.config import AccessConfig, is_loopback, read_api_keys
from serving_server import COLOUR, serving

KEYS = ("first-key-0123456789", "second-key-0123456789")
BODY = {"model": "g1", "messages": [{"role": "user", "content": COLOUR}], "max_tokens": 3}


@pytest.fixture(scope="module")
def locked(served_store):
    access = AccessConfig(port=0, api_keys=KEYS)
    with serving(served_store, access=access) as (url, _):
        yield url


@pytest.fixture(scope="module")
def opened(served_store):
    access = AccessConfig(port=0, max_body_bytes=1 << 20, body_timeout_s=1.0)
    with serving(served_store, access=access, max_new_tokens=400) as found:
        yield found


@pytest.fixture(scope="module")
def url(opened):
    return opened[0]


def chat(url, **options):
    return httpx.post(f"{url}/v1/chat/completions", timeout=30, **options)


def connect(url):
    address = urlparse(url)
    return socket.create_connection((address.hostname, address.port), timeout=30)


def head(length):
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % length
    )


def error_of(answer):
    return answer.json()["error"]


def test_any_of_the_keys_opens(locked):
    for key in KEYS:
        with openai.OpenAI(base_url=f"{locked}/v1", api_key=key) as client:
            assert client.chat.completions.create(**BODY).usage.completion_tokens == 3


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer wrong",
        f"Bearer {KEYS[0][:-1]}",
        f"Basic {KEYS[0]}",
        KEYS[0],
        f"Bearer {KEYS[0]}x",
        b"Bearer \xff\xfe",
    ],
)
def test_without_a_key_nothing_but_probes_and_the_empty_page(locked, authorization):
    headers = {} if authorization is None else {"Authorization": authorization}
    for method, path in (
        ("POST", "/v1/chat/completions"),
        ("GET", "/v1/models"),
        ("GET", "/v1/store"),
        ("GET", "/metrics"),
        ("GET", "/nothing"),
    ):
        answer = httpx.request(method, f"{locked}{path}", headers=headers)
        assert answer.status_code == 401
        assert error_of(answer)["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"
    for path in ("/healthz", "/readyz", "/", "/page/main.js"):
        assert httpx.get(f"{locked}{path}", headers=headers).status_code == 200


def test_a_host_beyond_this_machine_needs_a_key():
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        with pytest.raises(ConfigError, match="needs a key"):
            AccessConfig(host=host)
        assert AccessConfig(host=host, api_keys=KEYS).host == host
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))


def test_key_files(tmp_path):
    path = tmp_path / "keys.txt"
    path.write_text(f"# ours\n\n{KEYS[0]}\n  {KEYS[1]}  \n")
    path.chmod(0o600)
    assert read_api_keys(path) == KEYS
    for text, message in (
        ("", "holds no key"),
        ("short", "key 1 is not usable"),
        (f"{KEYS[0]}\nwith a blank in the middle", "key 2 is not usable"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_api_keys(path)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_api_keys(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_api_keys(tmp_path / "missing")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", ""])
def test_without_keys_other_names_are_refused(url, host):
    answer = chat(url, json=BODY, headers={"Host": host})
    assert answer.status_code in (400, 403)
    if host:
        assert error_of(answer)["code"] == "host_not_allowed"


def test_pages_of_other_sites_cannot_post(url):
    for kind in ("text/plain", "application/x-www-form-urlencoded", None):
        headers = {"Origin": "https://evil.example", **({"Content-Type": kind} if kind else {})}
        answer = chat(url, content=json.dumps(BODY), headers=headers)
        assert answer.status_code == 415
    assert "access-control-allow-origin" not in chat(url, json=BODY).headers


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"model": NaN}',
        b'{"seed": ' + b"9" * 10_000 + b"}",
        b'{"model": "\\ud800"}',
        b"\xff\xfe\x00",
        b'{"model": "g1", "messages": [{"role": "user", "content": "\xc3\x28"}]}',
    ],
)
def test_broken_json_is_a_clear_400(url, content):
    answer = chat(url, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert error_of(answer)["code"] in ("invalid_json", "missing_parameter", "invalid_value")
    assert len(answer.text) < 1000


def test_large_bodies_are_refused_while_they_are_read(url):
    answer = chat(url, content=b" " * (5 << 20), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert error_of(answer)["message"] == "The body is longer than 1048576 bytes."

    def pieces():
        for _ in range(50):
            yield b" " * (100 << 10)

    answer = chat(url, content=pieces(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413, "without Content-Length, too"


@pytest.mark.parametrize(("length", "status"), [(10**12, b" 413 "), (1000, b" 408 ")])
def test_bodies_that_never_arrive_are_given_up(url, length, status):
    with connect(url) as connection:
        connection.sendall(head(length) + b"{")
        assert status in connection.recv(4096)


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "groups/g1/0001",
        "g1@0009",
        "..%2f..%2fassistant.json",
        "g1\0",
        "x" * 5000,
        "",
        "⁄etc⁄passwd",
    ],
)
def test_names_that_look_like_paths_are_no_models(url, name):
    answer = chat(url, json={**BODY, "model": name})
    assert answer.status_code == 404
    assert error_of(answer)["code"] == "model_not_found"
    assert len(answer.text) < 1500


@pytest.mark.parametrize(
    "path",
    ["/page/../assistant.json", "/page/%2e%2e%2fapp.py", "/page/..%5capp.py", "/page/", "/page"],
)
def test_paths_of_requests_reach_no_file(url, path):
    address = urlparse(url)
    connection = http.client.HTTPConnection(address.hostname, address.port)
    connection.request("GET", path)
    answer = connection.getresponse()
    assert answer.status in (404, 307)
    assert b"import" not in answer.read()


def test_every_response_has_secure_headers(url):
    for path in ("/", "/page/main.js", "/v1/models", "/nothing"):
        headers = httpx.get(f"{url}{path}").headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers
    assert httpx.get(f"{url}/v1/models").headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_no_page_that_loads_scripts_from_elsewhere(url, path):
    assert httpx.get(f"{url}{path}").status_code == 404


def test_prompts_are_logged_only_if_asked(served_store, caplog):
    caplog.set_level(logging.INFO)
    secret = "a very private question"
    body = {**BODY, "messages": [{"role": "user", "content": secret}]}
    with serving(served_store) as (url, _):
        assert chat(url, json=body).status_code == 200
        assert chat(url, json={**body, "model": secret}).status_code == 404
    assert secret not in caplog.text
    assert "POST '/v1/chat/completions' 200" in caplog.text
    with serving(served_store, log_prompts=True) as (url, _):
        assert chat(url, json=body).status_code == 200
    assert secret in caplog.text


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_place(opened, stream):
    url, service = opened
    engine = service.answers.engine
    body = json.dumps({**BODY, "model": "base", "max_tokens": 400, "stream": stream}).encode()
    connection = connect(url)
    connection.sendall(head(len(body)) + body)
    wait_for(lambda: engine.running == 1)
    if stream:
        assert b"200 OK" in connection.recv(4096)
    before = service.monitoring.cancelled._value.get()
    connection.close()
    wait_for(lambda: engine.running == 0)
    assert service.monitoring.cancelled._value.get() == before + 1
    assert chat(url, json=BODY).status_code == 200
