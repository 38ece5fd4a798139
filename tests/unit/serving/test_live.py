"""Names that clients may use, and a store that changes under the server's eyes."""

import json
import shutil
import subprocess

import pytest
import torch
from peft import PeftModel
from typer.testing import CliRunner

from lcia.cli.main import app
from lcia.errors import StoreError
from lcia.exports.vllm import _served_rank, export_vllm, write_adapter
from lcia.files import read_sealed, sha256_of, write_sealed
from lcia.grouping import InstructionCodebook, Said
from lcia.learner import Store
from lcia.models import load_model
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


def logits(tiny_model, folder):
    model = load_model(str(tiny_model), dtype="float32").model
    with torch.inference_mode():
        ids = torch.arange(4, 24)[None]
        return PeftModel.from_pretrained(model, folder).eval()(input_ids=ids).logits


@pytest.mark.parametrize("index", range(4))
def test_an_exported_adapter_is_the_same_function(adapters, tiny_model, tmp_path, index):
    source = adapters[index][1]
    rank = write_adapter(source, tmp_path / "a")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["r"] == rank
    assert not config["rank_pattern"] and not config["alpha_pattern"]
    torch.testing.assert_close(logits(tiny_model, tmp_path / "a"), logits(tiny_model, source))


@pytest.fixture(scope="module")
def exported_store(tmp_path_factory, tiny_model) -> Store:
    return make_store(tmp_path_factory.mktemp("store") / "assistant", tiny_model)


def test_a_store_becomes_adapters_and_a_script(exported_store, tmp_path, tiny_model):
    done = CliRunner().invoke(app, ["export", str(exported_store.root), str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "2 adapters of version 2, for --max-lora-rank 8" in done.stdout
    out = tmp_path / "out"
    script = (out / "serve.sh").read_text()
    assert f"MODEL=${{MODEL:-{tiny_model}}}" in script
    for option in (
        "--served-model-name base",
        "--enable-lora",
        "--max-loras 3",
        "--max-lora-rank 8",
        "--lora-modules g1=adapters/g1@0001 g2=adapters/g2@0002",
    ):
        assert option in script
    subprocess.run(["bash", "-n", out / "serve.sh"], check=True)
    assert (out / "serve.sh").stat().st_mode & 0o100
    assert json.loads((out / "lcia.json").read_text())["ranks"] == {"g1": 8, "g2": 8}
    for key, folder in exported_store.current.adapters.values():
        exported = out / "adapters" / key
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            assert (exported / name).read_bytes() == (folder / name).read_bytes()


def test_what_vllm_cannot_serve_is_refused_and_nothing_written(
    exported_store, tmp_path, monkeypatch
):
    import shutil

    shutil.copytree(exported_store.root, tmp_path / "a")
    copy = Store.open(tmp_path / "a")
    out = tmp_path / "out"
    adapter = copy.current.adapters["g2"][1]
    for name, message in (
        ("gates.safetensors", "group g2: is a mixture of experts"),
        ("projector.safetensors", "group g2: has a projector of its own"),
    ):
        (adapter / name).write_bytes(b"")
        with pytest.raises(StoreError, match=message):
            export_vllm(copy, out)
        (adapter / name).unlink()
    copy.roll_back(0)
    with pytest.raises(StoreError, match="nothing yet"):
        export_vllm(copy, out)
    assert not out.exists()
    out.mkdir()
    (out / "mine").write_text("")
    with pytest.raises(StoreError, match="is not empty"):
        export_vllm(exported_store, out)


def test_ranks_are_rounded_up_to_what_vllm_knows():
    assert [_served_rank({"g": r}) for r in (1, 8, 9, 64, 300, 512)] == [8, 8, 16, 64, 320, 512]
    with pytest.raises(StoreError, match="group h: has rank 600"):
        _served_rank({"g": 8, "h": 600})


def test_what_a_killed_export_left_is_removed_by_the_next(exported_store, tmp_path):
    left = tmp_path / ".out.tmp"
    (left / "adapters" / "g9@0009").mkdir(parents=True)
    export_vllm(exported_store, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not (tmp_path / "out" / "adapters" / "g9@0009").exists()
