"""Keys for parts of the API, and the log of what was done with them."""

import json
import os
import re

import httpx
import pytest
from typer.testing import CliRunner

from lcia.cli.main import app as cli
from lcia.errors import ConfigError, StoreError
from lcia.learner import Store
from lcia.live.database import Database
from lcia.live.serving import LiveConfig, build_live_app
from lcia.serving.config import AccessConfig
from lcia.serving.gateway.app import Gateway, GatewayConfig, build_gateway
from lcia.serving.http.app import READ
from lcia.serving.keys import SCOPES, KeyRing, is_open, scope_of
from lcia.serving.live import LiveStore
from lcia.store import audit
from serving_server import COLOUR, make_service, make_store, running

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
        assert needed in SCOPES, f"{method} {path} has no scope: see lcia.serving.keys"
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
