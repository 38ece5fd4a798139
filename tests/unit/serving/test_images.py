"""Images come in as data; from elsewhere only where that is on, and only from the public."""

import asyncio
import base64
import io
import socket
from dataclasses import replace

import httpx
import pytest
import torch
from peft import LoraConfig
from PIL import Image as PILImage

from lcia.data import Image, Message
from lcia.models import AdapterHost, load_model
from lcia.serving.config import ServeConfig
from lcia.serving.engine.limits import EngineLimits
from lcia.serving.http import images
from lcia.serving.http.api_error import ApiError
from lcia.serving.http.images import decode_data_url, is_public, load_images, open_images
from lcia.serving.http.schemas import ChatRequest, parse
from lcia.serving.http.service import Service
from tiny_visual import FAMILIES, save


def image(form="PNG", size=(4, 3), **options):
    buffer = io.BytesIO()
    PILImage.new("RGB", size, (255, 0, 0)).save(buffer, form, **options)
    return buffer.getvalue()


def data_url(content, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def load(*urls, fetch=False):
    return open_images(asyncio.run(load_images(urls, fetch=fetch)))


def refused(*urls, fetch=False):
    with pytest.raises(ApiError) as error:
        load(*urls, fetch=fetch)
    assert (error.value.status, error.value.code) == (400, "invalid_image")
    assert len(str(error.value)) < 200
    return str(error.value)


@pytest.mark.parametrize("kind", images.FORMATS)
def test_data_urls_of_every_format(kind):
    (found,) = load(data_url(image(images.FORMATS[kind]), kind))
    assert (found.size, found.mode) == ((4, 3), "RGB")


def test_images_are_turned_upright():
    turned = PILImage.Exif()
    turned[0x0112] = 6
    (found,) = open_images([image("JPEG", exif=turned)])
    assert found.size == (3, 4)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("data:image/svg+xml;base64,AAAA", "expected data:TYPE"),
        ("data:text/html;base64,AAAA", "expected data:TYPE"),
        ("data:image/png,AAAA", "expected data:TYPE"),
        ("data:image/png;base64", "expected data:TYPE"),
        ("data:image/png;base64,A*A=", "is not base64"),
        ("data:image/png;base64,", "no image"),
        (data_url(b"<svg/>"), "no image"),
        (data_url(image()[:20]), "no image"),
        (data_url(image(size=(90, 90))[:-100]), "is damaged"),
        ("https://example.org/a.png", "fetches no images"),
        ("file:///etc/passwd", "fetches no images"),
        ("/etc/passwd", "fetches no images"),
    ],
)
def test_what_is_no_image(url, said):
    assert said in refused(url)


def test_images_that_would_fill_the_memory(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 23)
    assert len(load(data_url(image()))) == 1
    assert "24 pixels are too many; expected at most 23" in refused(*[data_url(image())] * 2)
    monkeypatch.setattr(images, "MAX_BYTES", 30)
    with pytest.raises(ApiError, match="larger than 30 bytes"):
        decode_data_url(data_url(image()))


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "fc00::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "2002:7f00:1::1",
        "64:ff9b::10.0.0.1",
        "64:ff9b::8.8.8.8",
        "2001:0:7f00:1::1",
        "ff02::1",
    ],
)
def test_addresses_that_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "::ffff:8.8.8.8"]
)
def test_addresses_that_are(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/a.png",
        "http://localhost/a.png",
        "http://[::1]/a.png",
        "http://169.254.169.254/latest/meta-data",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://127.1/",
        "http://user:pass@example.org/a.png",
        "http://example.org:8080/a.png",
        "ftp://example.org/a.png",
        "file:///etc/passwd",
        "gopher://example.org/",
        "http://",
        "http://a b/",
    ],
)
def test_what_is_not_fetched(url):
    refused(url, fetch=True)


@pytest.fixture
def web(monkeypatch):
    """Hosts by name, and what they answer; requests must go to the address, under the name."""
    answers, addresses, asked = {}, {}, []

    async def getaddrinfo(self, host, port, **options):
        if host not in addresses:
            raise socket.gaierror
        return [(0, 0, 0, "", (address, port)) for address in addresses[host]]

    def respond(request):
        asked.append((request.url.host, request.headers["host"], request.extensions))
        return answers[f"{request.headers['host']}{request.url.path}"]

    client = httpx.AsyncClient
    monkeypatch.setattr(asyncio.SelectorEventLoop, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(
        httpx, "AsyncClient", lambda **o: client(transport=httpx.MockTransport(respond), **o)
    )
    answers["a.org/ok.png"] = png = httpx.Response(
        200, content=image(), headers={"content-type": "image/png"}
    )
    addresses["a.org"] = ["93.184.215.14"]
    return answers, addresses, asked, png


def redirect(target):
    return httpx.Response(302, headers={"location": target})


def test_a_public_image_is_fetched_from_the_address_that_was_checked(web):
    _, _, asked, _ = web
    (found,) = load("https://a.org/ok.png", fetch=True)
    assert found.size == (4, 3)
    (host, name, extensions) = asked[0]
    assert (host, name, extensions["sni_hostname"]) == ("93.184.215.14", "a.org", "a.org")


def test_redirects_are_checked_like_the_first_address(web):
    answers, addresses, asked, _ = web
    answers["a.org/moved"] = redirect("/ok.png")
    assert load("http://a.org/moved", fetch=True)
    addresses["inside.org"] = ["93.184.215.14", "10.0.0.1"]
    for target in ("http://127.0.0.1/", "http://inside.org/", "file:///etc/passwd", "//[::1]/"):
        answers["a.org/evil"] = redirect(target)
        before = len(asked)
        refused("http://a.org/evil", fetch=True)
        assert len(asked) == before + 1, "nothing was asked after the redirect"
    answers["a.org/round"] = redirect("/round")
    assert "more than 3 times" in refused("http://a.org/round", fetch=True)


def test_what_servers_send_is_limited(web, monkeypatch):
    answers, _, _, _ = web
    answers["a.org/page"] = httpx.Response(200, text="x", headers={"content-type": "text/html"})
    assert "sends text/html" in refused("http://a.org/page", fetch=True)
    answers["a.org/none"] = httpx.Response(404)
    assert "answers 404" in refused("http://a.org/none", fetch=True)
    monkeypatch.setattr(images, "MAX_BYTES", 30)
    assert "larger than 30 bytes" in refused("http://a.org/ok.png", fetch=True)
    assert "no address" in refused("http://unknown.org/", fetch=True)


def test_fetching_takes_limited_time(web, monkeypatch):
    async def slow(url):
        await asyncio.sleep(10)

    monkeypatch.setattr(images, "_fetch", slow)
    monkeypatch.setattr(images, "FETCH_TIMEOUT_S", 0.05)
    assert "did not arrive" in refused("http://a.org/ok.png", fetch=True)


def test_a_request_has_few_images_and_none_of_more_is_fetched(web):
    _, _, asked, _ = web
    assert len(load(*["http://a.org/ok.png"] * images.MAX_IMAGES, fetch=True)) == 16
    asked.clear()
    assert "5000 images; expected at most 16" in refused(
        *["http://a.org/ok.png"] * 5_000, fetch=True
    )
    assert not asked


def test_the_images_of_a_request_share_one_time(web, monkeypatch):
    async def slow(url):
        await asyncio.sleep(0.05)
        return image()

    monkeypatch.setattr(images, "_fetch", slow)
    monkeypatch.setattr(images, "FETCH_TIMEOUT_S", 0.2)
    assert load("http://a.org/ok.png", fetch=True)
    assert "did not arrive" in refused(*["http://a.org/ok.png"] * 16, fetch=True)


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return save(FAMILIES[request.param], tmp_path_factory.mktemp("families") / request.param)


def adapter_with_projector(host, folder):
    """A random adapter, and a projector unlike the model's own."""
    model = host.new_adapter(LoraConfig(r=4, target_modules="all-linear"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
        for parameter in host.projector.parameters():
            parameter.normal_(std=0.5)
    model.save_pretrained(folder)
    host.projector.save(folder)
    host.clear()
    return folder


@pytest.fixture
def image_folder(tmp_path):
    """Files of different size."""
    for name, size in {"a": (60, 40), "b": (50, 90)}.items():
        PILImage.effect_noise(size, 90).convert("RGB").save(tmp_path / f"{name}.png")
    return tmp_path


def request(folder, *parts):
    """The body of a chat request: texts, and names of images."""

    def part(value):
        if not value.startswith("@"):
            return {"type": "text", "text": value}
        data = base64.b64encode((folder / f"{value[1:]}.png").read_bytes()).decode()
        return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}

    content = [part(value) for value in parts]
    return {"model": "base", "messages": [{"role": "user", "content": content}], "max_tokens": 10}


CASES = [("@a", "What is it?"), ("Without.",), ("Is", "@a", "or", "@b", "the same?"), ("@b",)]
MESSAGES = [
    ("What is it?", ("a", 0)),
    ("Without.",),
    ("Is\nor\nthe same?", ("a", 2), ("b", 5)),
    ("", ("b", 0)),
]


class Unrouted:
    """Stands for a store: nothing is routed here."""

    class current:
        number, names, pinned, adapters = 0, {}, {}, {}

    @classmethod
    def named(cls, model):
        return cls.current, model


@pytest.mark.filterwarnings("ignore")
def test_answers_equal_those_given_one_by_one(folder, image_folder, tmp_path):
    host = AdapterHost(load_model(str(folder), dtype="float32"))
    group = ("g1@0001", adapter_with_projector(host, tmp_path / "g1"))
    conversations = [
        (
            Message(
                role="user",
                content=text,
                images=tuple(Image(path=str(image_folder / f"{n}.png"), at=at) for n, at in images),
            ),
        )
        for text, *images in MESSAGES
    ]
    rows = [(i, adapter) for i in range(4) for adapter in (None, group)]
    expected = [
        host.generate([conversations[i]], [adapter], max_new_tokens=10)[0] for i, adapter in rows
    ]
    host.clear()
    assert len(set(expected)) > 5
    service = Service(host, Unrouted, config=ServeConfig(limits=EngineLimits(max_batch=8)))

    async def ask():
        service.answers.start()

        async def one(i, adapter):
            asked = parse(ChatRequest, request(image_folder, *CASES[i]))
            prepared = await service.prepare(asked)
            answer = service.answers.ask(prompt=replace(prepared.prompt, adapter=adapter))
            return "".join(
                [d.text async for d in service.generate(replace(prepared, answer=answer))]
            )

        found = await asyncio.gather(*(one(i, adapter) for i, adapter in rows))
        await service.stop()
        return found

    assert [text.strip() for text in asyncio.run(ask())] == expected


def test_a_text_model_says_that_it_reads_no_images(tiny_model, image_folder):
    host = AdapterHost(load_model(str(tiny_model), dtype="float32"))
    service = Service(host, Unrouted, config=ServeConfig())
    asked = parse(ChatRequest, request(image_folder, "@a", "What is it?"))
    with pytest.raises(ApiError, match="reads no images") as refused:
        asyncio.run(service.prepare(asked))
    assert refused.value.status == 400
