"""What vLLM is given is what it can serve: one rank, one scaling, the same function."""

import json
import subprocess

import pytest
import torch
from peft import PeftModel
from typer.testing import CliRunner

from lcia.cli.main import app
from lcia.errors import StoreError
from lcia.exports.vllm import _served_rank, _write_adapter, export_vllm
from lcia.learner import Store
from lcia.models import load_model
from serving_server import make_store


def logits(tiny_model, folder):
    model = load_model(str(tiny_model), dtype="float32").model
    with torch.inference_mode():
        ids = torch.arange(4, 24)[None]
        return PeftModel.from_pretrained(model, folder).eval()(input_ids=ids).logits


@pytest.mark.parametrize("index", range(4))
def test_an_exported_adapter_is_the_same_function(adapters, tiny_model, tmp_path, index):
    source = adapters[index][1]
    rank = _write_adapter(source, tmp_path / "a")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["r"] == rank
    assert not config["rank_pattern"] and not config["alpha_pattern"]
    torch.testing.assert_close(logits(tiny_model, tmp_path / "a"), logits(tiny_model, source))


@pytest.fixture(scope="module")
def store(tmp_path_factory, tiny_model) -> Store:
    return make_store(tmp_path_factory.mktemp("store") / "assistant", tiny_model)


def test_a_store_becomes_adapters_and_a_script(store, tmp_path, tiny_model):
    done = CliRunner().invoke(app, ["export", str(store.root), str(tmp_path / "out")])
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
    for key, folder in store.current.adapters.values():
        exported = out / "adapters" / key
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            assert (exported / name).read_bytes() == (folder / name).read_bytes()


def test_what_vllm_cannot_serve_is_refused_and_nothing_written(store, tmp_path, monkeypatch):
    import shutil

    shutil.copytree(store.root, tmp_path / "a")
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
        export_vllm(store, out)


def test_ranks_are_rounded_up_to_what_vllm_knows():
    assert [_served_rank({"g": r}) for r in (1, 8, 9, 64, 300, 512)] == [8, 8, 16, 64, 320, 512]
    with pytest.raises(StoreError, match="group h: has rank 600"):
        _served_rank({"g": 8, "h": 600})


def test_what_a_killed_export_left_is_removed_by_the_next(store, tmp_path):
    left = tmp_path / ".out.tmp"
    (left / "adapters" / "g9@0009").mkdir(parents=True)
    export_vllm(store, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not (tmp_path / "out" / "adapters" / "g9@0009").exists()
