"""Who may not ask is refused, whatever they send; everything else goes on."""

import http.client
import json
import logging
import os
import re
import socket
import time
from urllib.parse import urlparse

import httpx
import openai
import pytest
from typer.testing import CliRunner

from lcia.cli.main import app as cli
from lcia.errors import ConfigError, StoreError
from lcia.learner import Store
from lcia.live.database import Database
from lcia.live.serving import LiveConfig, build_live_app
from lcia.serving.config import (
    SCOPES,
    AccessConfig,
    KeyRing,
    is_loopback,
    is_open,
    read_api_keys,
    scope_of,
)
from lcia.serving.gateway.app import Gateway, GatewayConfig, build_gateway
from lcia.serving.http.app import READ
from lcia.serving.live import LiveStore
from lcia.store import audit
from serving_server import COLOUR, make_service, make_store, running, serving

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


FULL = "a-key-that-may-do-everything"


@pytest.fixture(scope="module")
def root(tmp_path_factory, tiny_model):
    return make_store(tmp_path_factory.mktemp("keys") / "assistant", tiny_model).root


@pytest.fixture(scope="module")
def keys(root):
    """Scope to a key that has only this."""
    return {scope: KeyRing(root).add(f"only-{scope}", [scope]) for scope in SCOPES}


@pytest.fixture(scope="module")
def live(root, keys):
    """A server with every endpoint there is; its application and address."""
    access = AccessConfig(port=0, api_keys=(FULL,), assistant=root)
    service = make_service(Store.open(root), access=access)
    app = build_live_app(service, LiveConfig(learn=True), Database(root))
    with running(app, access) as url:
        yield app, url


@pytest.fixture(scope="module")
def gateway(root, keys, live):
    access = AccessConfig(port=0, api_keys=(FULL,), assistant=root)
    config = GatewayConfig(upstreams=[live[1]], access=access, upstream_key=FULL)
    app = build_gateway(Gateway(LiveStore(root, served_here=False), config=config))
    with running(app, access) as url:
        yield app, url


def requests_of(app):
    """Every method and path of an application, with something in the place of parameters."""
    for route in app.routes:
        for method in sorted(getattr(route, "methods", None) or {"GET"}):
            yield method, re.sub(r"\{[^}:]*(:\w+)?\}", "1", route.path)


def ask(url, method, path, key=None):
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.request(method, url + path, headers=headers, timeout=30)


@pytest.mark.parametrize("place", ["live", "gateway"])
def test_every_endpoint_is_open_to_its_scope_and_to_no_other(request, keys, place):
    app, url = request.getfixturevalue(place)
    asked = set(requests_of(app))
    assert len(asked) > {"live": 30, "gateway": 8}[place]
    for method, path in sorted(asked):
        if is_open(path):
            assert ask(url, method, path).status_code not in (401, 403), path
            continue
        needed = scope_of(method, path)
        assert needed in SCOPES, f"{method} {path} has no scope: see lcia.serving.config"
        assert ask(url, method, path).status_code == 401, path
        for scope, key in keys.items():
            told = ask(url, method, path, key)
            if scope == needed:
                assert told.status_code not in (401, 403), (method, path, told.text)
            else:
                assert told.status_code == 403, (method, path, scope)
                if method != "HEAD":
                    assert told.json()["error"]["code"] == "insufficient_scope"
        assert ask(url, method, path, FULL).status_code not in (401, 403), path


def test_looking_is_what_get_and_head_do(live):
    for method, path in requests_of(live[0]):
        if method in READ:
            assert scope_of("GET", path) == scope_of("HEAD", path)


def test_a_revoked_key_opens_nothing_with_the_next_request(root, live):
    _, url = live
    key = run("add", root, "leaver", "--scope", "chat").strip()
    assert key.startswith("lcia-")
    assert key not in (root / "keys.json").read_text()
    assert ask(url, "GET", "/v1/models", key).status_code == 200
    run("revoke", root, "leaver")
    assert ask(url, "GET", "/v1/models", key).status_code == 401
    assert "leaver" in run("list", root)
    with pytest.raises(ConfigError, match="was used before"):
        run("add", root, "leaver", "--scope", "chat")
    with pytest.raises(ConfigError, match="no key 'leaver' in use"):
        run("revoke", root, "leaver")
    with pytest.raises(ConfigError, match="expected some of chat, feedback, learn, admin"):
        run("add", root, "other", "--scope", "chats")
    what = [(e["what"], e.get("key")) for e in audit.entries(root)]
    assert what[-2:] == [("key made", "leaver"), ("key revoked", "leaver")]


def test_whoever_has_the_last_key_revoked_does_not_open_the_door(tmp_path):
    ring = KeyRing(tmp_path)
    ring.add("only", ["chat"])
    ring.revoke("only")
    assert AccessConfig(assistant=tmp_path).keys().needed
    with pytest.raises(ConfigError, match="lcia keys add STORE NAME --scope chat"):
        AccessConfig(host="0.0.0.0", assistant=tmp_path / "other")
    assert AccessConfig(host="0.0.0.0", assistant=tmp_path).host == "0.0.0.0"


def test_revoking_a_key_that_is_not_there_writes_nothing(tmp_path):
    with pytest.raises(ConfigError, match="no key 'nobody' in use"):
        KeyRing(tmp_path).revoke("nobody")
    assert not any(tmp_path.iterdir())


def test_damaged_keys_open_nothing(root, live, tmp_path):
    (tmp_path / "keys.json").write_text((root / "keys.json").read_text().replace("chat", "admin"))
    with pytest.raises(StoreError, match="differs from its checksum"):
        _ = KeyRing(tmp_path).active


def test_a_receipt_names_the_key_that_asked(root, live, keys):
    _, url = live
    body = {"model": "g1", "messages": [{"role": "user", "content": COLOUR}], "max_tokens": 2}
    headers = {"Authorization": f"Bearer {keys['chat']}"}
    told = httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=30)
    receipt = ask(url, "GET", f"/v1/lcia/receipts/{told.json()['id']}", keys["feedback"]).json()
    assert receipt["key"] == "only-chat"


def run(*words):
    done = CliRunner().invoke(cli, ["keys", *map(str, words)], catch_exceptions=False)
    return done.output


@pytest.fixture
def log(tmp_path):
    for number in range(1, 6):
        audit.record(tmp_path, "released", version=number)
    return tmp_path


def lines(root):
    return (root / audit.FILE).read_bytes().splitlines(keepends=True)


def test_the_log_names_the_first_entry_that_was_changed(log):
    assert list(audit.check(log)) == []
    whole = lines(log)
    for broken, changed in {
        3: [*whole[:2], whole[2].replace(b"released", b"rejected"), *whole[3:]],
        2: [whole[0], *whole[2:]],
        4: [*whole[:3], whole[4], whole[3]],
        1: [b"no entry\n", *whole[1:]],
    }.items():
        (log / audit.FILE).write_bytes(b"".join(changed))
        (found,) = audit.check(log)
        assert found.startswith(f"{log / audit.FILE}:{broken}: "), found


@pytest.mark.parametrize("cut", [1, 20, 150])
def test_a_line_that_a_crash_cut_off_is_told_and_kept_as_what_it_is(log, cut):
    whole = (log / audit.FILE).read_bytes()
    (log / audit.FILE).write_bytes(whole[:-cut])
    (found,) = audit.check(log)
    assert "the last line is cut off" in found
    audit.record(log, "released", version=6)
    assert list(audit.check(log)) == []
    *_, torn, last = audit.entries(log)
    assert torn["what"] == "torn"
    assert json.dumps("released")[1:-1] in torn["line"]
    assert [e["number"] for e in audit.entries(log)] == list(range(1, 7))
    assert last["version"] == 6


def test_the_log_has_releases_and_who_did_them(root, tmp_path, tiny_model):
    store = make_store(tmp_path / "assistant", tiny_model)
    with audit.acting("key anna"):
        store.roll_back(1)
    store.roll_back(2)
    found = [(e["what"], e["version"], e["who"]) for e in audit.entries(store.root)]
    user = audit.who_acts()
    assert found == [
        ("released", 1, user),
        ("released", 2, user),
        ("rolled back", 1, "key anna"),
        ("rolled back", 2, user),
    ]
    assert store.verify() == []
    text = (store.root / audit.FILE).read_text().replace("anna", "otto")
    (store.root / audit.FILE).write_text(text)
    (finding,) = store.verify()
    assert f"{audit.FILE}:3: the entry was changed" in finding
    assert os.path.exists(store.root)
