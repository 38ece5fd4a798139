"""Names that clients may use, and a store that changes under the server's eyes."""

import shutil

import pytest

from lcia.errors import StoreError
from lcia.files import read_sealed, sha256_of, write_sealed
from lcia.grouping import InstructionCodebook, Said
from lcia.learner import Store
from lcia.serving.http.api_error import ApiError
from lcia.serving.http.routing import choose_adapter
from lcia.serving.live import LiveStore
from serving_server import COLOUR, make_store


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_model):
    return make_store(tmp_path_factory.mktemp("store") / "assistant", tiny_model)


@pytest.fixture
def store(made, tmp_path) -> Store:
    shutil.copytree(made.root, tmp_path / "assistant")
    return Store.open(tmp_path / "assistant")


def rename(store, group, name):
    """Rename in place what lcia would rename in a new version."""
    path = store.current.path / "codebook.json"
    codebook = InstructionCodebook.load(path)
    codebook.rename(group, name)
    codebook.save(path)
    manifest = read_sealed(path.with_name("manifest.json"))
    key = path.relative_to(store.root).as_posix()
    files = {**manifest["files"], key: sha256_of(path)}
    write_sealed(path.with_name("manifest.json"), {**manifest, "files": files})


def test_a_renamed_group_is_served_by_name_and_id(store):
    rename(store, "g1", "colour letters")
    snapshot = LiveStore(store.root).current
    assert list(snapshot.names) == ["colour letters", "g2", "g1"]
    for name in ("colour letters", "g1"):
        choice = choose_adapter(snapshot, name, Said(turns=(COLOUR,)))
        assert (choice.group, choice.adapter[0]) == ("g1", "g1@0001")
        assert choice.headers()["x-lcia-group"] == "g1"
    with pytest.raises(ApiError, match="There are: assistant, base, colour letters, g2, g1"):
        choose_adapter(snapshot, "g3", Said(turns=(COLOUR,)))


@pytest.mark.parametrize("name", ["assistant", "base"])
def test_a_group_may_not_take_a_name_that_means_something_else(store, name):
    rename(store, "g2", name)
    with pytest.raises(StoreError, match=f"called '{name}'.*lcia groups rename"):
        LiveStore(store.root)


def test_only_another_version_is_loaded(store):
    live = LiveStore(store.root)
    first = live.current
    assert not live.refresh()
    record = store.root / "assistant.json"
    write_sealed(record, {**read_sealed(record), "note": "touched"})
    assert not live.refresh()
    assert live.current is first
    store.roll_back(1)
    assert live.refresh()
    assert (live.current.number, list(live.current.names)) == (1, ["g1"])


def test_a_damaged_version_is_tried_again(store):
    live = LiveStore(store.root)
    codebook = store.version(1).path / "codebook.json"
    text = codebook.read_text()
    store.roll_back(1)
    codebook.write_text("{")
    for _ in range(2):
        with pytest.raises(StoreError):
            live.refresh()
    assert live.current.number == 2
    codebook.write_text(text)
    assert live.refresh()


def test_a_follow_up_looks_back_for_an_instruction(store):
    router = LiveStore(store.root).current.router
    turns = [COLOUR, "and red?", "and blue?"]
    assert [looked_back(router, *turns[:n]).back for n in (1, 2, 3)] == [0, 1, 2]
    assert looked_back(router, "hello", "you").decision.reason == "below_nearest"
    far = [COLOUR, *["and this?"] * 8]
    assert looked_back(router, *far).back == 0, "eight turns, and no further"


def looked_back(router, *turns):
    return router.consider(Said(turns=turns))


def test_an_assistant_that_learned_nothing_answers_with_the_base_model(store):
    store.roll_back(0)
    choice = choose_adapter(LiveStore(store.root).current, "assistant", Said(turns=("hello",)))
    assert (choice.group, choice.adapter, choice.reason) == (None, None, "no_groups")
    assert choice.headers()["x-lcia-group"] == "base"
