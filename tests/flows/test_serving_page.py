"""The page in a real Chromium: two questions, two groups, and no request to anywhere else."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from conftest import make_task
from lcia.errors import GateError
from lcia.learner import ContinualLearner, Store
from lcia.live.database import Database
from lcia.live.inbox import Inbox
from lcia.live.serving import LiveConfig, build_live_app
from lcia.reports.plots import with_palette
from lcia.serving.config import AccessConfig
from serving_server import COLOUR, NUMBER, make_service, make_store, running, serving

DOCS = Path(__file__).parents[2] / "docs"

KEY = "a-key-that-is-long-enough"
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

pytestmark = pytest.mark.skipif(
    CHROMIUM is None and "CI" not in os.environ,
    reason="needs Chromium: apt-get install --no-install-recommends chromium",
)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    assert CHROMIUM, "apt-get install --no-install-recommends chromium"
    with sync_playwright() as playwright:
        # Chromium's own sandbox needs privileges that containers do not give.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Open a page and fail the test for anything it complains about or asks of others."""
    problems, asked = [], []

    def open_page(url, **context):
        page = browser.new_context(**context).new_page()
        page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda r: asked.append(r.url))
        page.goto(url)
        return page

    open_page.problems = problems
    yield open_page
    assert not [address for address in asked if "//127.0.0.1:" not in address]


@pytest.fixture(scope="module")
def url(served_store):
    with serving(served_store, max_new_tokens=40) as (url, _):
        yield url


def ask(page, text):
    page.fill("#prompt", text)
    page.keyboard.press("Enter")
    answer = page.locator("article.answer").last
    answer.locator(".pace").wait_for()
    return answer


def test_two_questions_two_groups(open_page, url):
    page = open_page(url)
    page.locator("#examples button").first.wait_for()
    assert page.title() == "assistant"
    first = ask(page, COLOUR)
    assert first.locator(".group").first.inner_text() == "g1"
    second = ask(page, NUMBER)
    assert second.locator(".group").first.inner_text() == "g2"
    assert "its instructions match · 100 %" in second.inner_text()
    assert page.locator(".question").all_inner_texts() == [COLOUR, NUMBER]
    second.locator(".reason").click()
    second.locator(".details ul").wait_for()
    assert "Write this number as a digit." in second.locator(".details").inner_text()
    assert not open_page.problems


def test_an_example_a_chosen_model_and_a_new_chat(open_page, url):
    page = open_page(url)
    page.locator("#examples button", has_text="numbers").click()
    page.locator("article.answer .pace").wait_for()
    assert page.locator(".answer .group").first.inner_text() == "g2"
    page.select_option("#model", "base")
    answer = ask(page, COLOUR)
    assert answer.locator(".group").inner_text() == "base model"
    assert "you chose it" in answer.inner_text()
    page.click("#clear")
    assert page.locator("article.answer").count() == 0
    assert page.locator("#welcome").is_visible()
    assert not open_page.problems


def test_what_it_learned(open_page, url):
    page = open_page(url, color_scheme="dark")
    page.click("#show-store")
    page.locator(".heat").wait_for()
    text = page.locator("#store").inner_text()
    for expected in ("version 2", "Average accuracy", "Say the letter of the colour.", "numbers"):
        assert expected in text
    assert page.locator(".heat tbody tr").count() == 3
    assert page.locator(".versions li").count() == 2
    assert not page.locator("#chat").is_visible()
    assert not open_page.problems


def test_markup_in_a_question_is_text(open_page, url):
    page = open_page(url)
    ask(page, "<img src=x onerror='document.title=1'> <b>bold</b>")
    assert page.locator(".question b, .question img").count() == 0
    assert page.title() == "assistant"


def test_a_question_before_the_groups_are_known_waits_for_them(open_page, url):
    page = open_page(url)
    held = []
    page.route("**/v1/store", lambda route: held.append(route))
    page.reload()
    page.fill("#prompt", NUMBER)
    page.keyboard.press("Enter")
    page.locator("#send.stop").wait_for()
    assert page.locator("article.answer .why").inner_text() == ""
    held[0].continue_()
    page.locator("article.answer .pace").wait_for()
    assert page.locator("article.answer .group").inner_text() == "g2"
    page.reload()
    page.fill("#prompt", NUMBER)
    page.keyboard.press("Enter")
    page.locator("#send.stop").wait_for()
    held[1].fulfill(status=503, json={"error": {"message": "Not now."}})
    page.locator(".problem").wait_for()
    assert page.locator(".problem").inner_text() == "Not now."


def test_a_key_is_asked_for(open_page, served_store):
    access = AccessConfig(port=0, api_keys=(KEY,))
    with serving(served_store, access=access, max_new_tokens=8) as (url, _):
        page = open_page(url)
        for key in ("wrong", KEY):
            page.locator("#key[open]").wait_for()
            page.fill("#key-input", key)
            page.click("#key button")
        page.locator("#examples button").first.wait_for()
        assert ask(page, NUMBER).locator(".group").first.inner_text() == "g2"
        assert all("401" in problem for problem in open_page.problems)


def test_an_error_is_shown_and_the_page_goes_on(open_page, url):
    page = open_page(url)
    page.fill("#prompt", "x" * 600)
    page.keyboard.press("Enter")
    page.locator(".problem").wait_for()
    assert "context length is 512" in page.locator(".problem").inner_text()
    assert ask(page, NUMBER).locator(".group").first.inner_text() == "g2"


PICTURES = "LCIA_WRITE_PICTURES" in os.environ
RIGHT = "green" if PICTURES else "g"


@pytest.fixture(scope="module")
def live(tmp_path_factory, served_store):
    """A server that takes feedback, with an inbox of its own; for pictures, of a real model."""
    root = tmp_path_factory.mktemp("live") / "desk"
    if PICTURES:
        training = {"num_train_epochs": 6, "learning_rate": 1e-3}
        make_store(root, "smollm2-135m", training=training)
    else:
        shutil.copytree(served_store.root, root)
    service = make_service(Store.open(root), max_new_tokens=8)
    app = build_live_app(service, LiveConfig(learn=True, keep_prompts=True), Database(root))
    with running(app, service.config.access) as url:
        yield url, root


def picture(page, name):
    """Write a picture for the docs, where LCIA_WRITE_PICTURES asks for it."""
    if PICTURES:
        page.set_viewport_size({"width": 900, "height": 620})
        (DOCS / f"{name}.png").write_bytes(with_palette(page.screenshot()))


def test_an_answer_is_corrected_below_it_and_the_inbox_decides_by_keyboard(open_page, live):
    url, root = live
    page = open_page(url)
    answer = ask(page, COLOUR)
    answer.get_by_role("button", name="Bad answer").click()
    answer.get_by_text("Thank you.").wait_for()
    answer.get_by_role("button", name="Correct this answer").click()
    answer.locator("textarea").fill(RIGHT)
    picture(page, "live-correction")
    answer.get_by_role("button", name="Send correction").click()
    answer.get_by_text("It waits in the inbox.").wait_for()
    for text, correction in ((NUMBER, "2"), (NUMBER.replace("two", "one"), "9")):
        answer = ask(page, text)
        answer.get_by_role("button", name="Correct this answer").click()
        answer.locator("textarea").fill(correction)
        answer.get_by_role("button", name="Send correction").click()
        answer.get_by_text("It waits in the inbox.").wait_for()
    page.click("#show-inbox")
    page.locator(".entries li").nth(3).wait_for()
    inbox = Inbox(Database(root))
    page.keyboard.press("j")
    assert page.locator(".side.said").inner_text().endswith(RIGHT)
    assert page.locator(".side.given p").inner_text() == inbox.get(2)["answer"]
    picture(page, "live-inbox")
    page.keyboard.press("a")
    page.locator("[data-state=accepted]").wait_for()
    page.keyboard.press("a")
    page.locator("[data-state=accepted]").nth(1).wait_for()
    page.keyboard.press("e")
    page.locator(".side.said textarea").fill("1")
    page.keyboard.press("Enter")
    page.locator(".side.said p", has_text="1").wait_for()
    page.keyboard.press("r")
    page.locator("[data-state=rejected]").wait_for()
    states = [(entry["state"], entry["correction"]) for entry in inbox.listed()]
    assert states == [("new", None), ("accepted", RIGHT), ("accepted", "2"), ("rejected", "1")]
    page.keyboard.press("l")
    page.get_by_text("learns corrections-").wait_for()
    assert [entry["state"] for entry in inbox.listed()][1:3] == ["taught", "taught"]
    assert not open_page.problems


def test_the_report_of_a_release_says_what_the_gate_measured(open_page, live):
    url, root = live
    learner = ContinualLearner(Store.open(root))
    gate = learner.config.gate.model_copy(update={"tests": "all"})
    learner.config = learner.config.model_copy(update={"gate": gate})
    with suppress(GateError):  # a model that knows nothing may lose by chance
        learner.learn(make_task("shades", COLOUR.partition("\n")[0], {"blue": "b", "white": "w"}))
    page = open_page(f"{url}/v1/lcia/releases/3")
    text = page.locator("main").inner_text()
    assert "3: shades" in text
    for check in ("earlier_tasks", "new_task", "routing", "general", "suites"):
        assert page.locator("tbody th", has_text=check).count() >= 1
    verdicts = page.locator("tbody td:last-child", has_text="passes").count()
    assert verdicts >= 3
    assert page.locator("section", has_text="Scores in percent").locator("tbody tr").count() == 3
    picture(page, "live-release")
    assert not open_page.problems


def test_a_server_without_feedback_shows_no_inbox(open_page, url):
    page = open_page(url)
    assert ask(page, COLOUR).locator(".feedback").count() == 0
    assert not page.locator("#show-inbox").is_visible()
