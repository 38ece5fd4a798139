"""Models out: what stock peft and transformers load answers as the assistant does."""

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from lcia.cli.main import app
from lcia.config import AssistantConfig
from lcia.errors import ConfigError, StoreError
from lcia.exports import peft
from lcia.exports.folder import check_push
from lcia.exports.peft import export_merged, export_peft
from lcia.learner import ContinualLearner, Store, import_adapter


@pytest.fixture(scope="module")
def foreign(tiny_model, tmp_path_factory):
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    torch.manual_seed(1)
    settings = {"r": 3, "lora_alpha": 7, "use_rslora": True}
    model = get_peft_model(base, LoraConfig(target_modules=["q_proj", "down_proj"], **settings))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    folder = tmp_path_factory.mktemp("foreign") / "adapter"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def store(tiny_model, tmp_path_factory, colours, foreign) -> Store:
    """A learned group and an imported, unmeasured one."""
    config = AssistantConfig(
        model=str(tiny_model),
        dtype="float32",
        training={"num_train_epochs": 2, "learning_rate": 1e-2},
        adapter={"r": 4},
    )
    learner = ContinualLearner.create(tmp_path_factory.mktemp("made") / "assistant", config)
    learner.learn(colours)
    import_adapter(learner, foreign, name="legacy", instructions=["Translate into German."])
    return learner.store


def logits(model):
    with torch.inference_mode():
        return model.eval()(torch.arange(4, 40)[None]).logits


def test_a_foreign_adapter_comes_out_as_it_went_in(store, foreign, tiny_model, tmp_path):
    export_peft(store, tmp_path / "out")
    out = tmp_path / "out" / "g2"
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (out / file).read_bytes() == (foreign / file).read_bytes()

    def stock(folder):
        base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        return logits(PeftModel.from_pretrained(base, folder))

    assert torch.equal(stock(out), stock(foreign))


def test_exports_hold_no_samples_that_a_method_remembers(store, tmp_path):
    assert (store.current.adapters["g1"][1] / "memory.jsonl").is_file()
    export_peft(store, tmp_path / "out")
    files = {path.name for path in (tmp_path / "out" / "g1").iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors", "README.md"}


def test_merged_models_answer_in_transformers_as_the_assistant_does(store, tmp_path, colours):
    about = export_merged(store, tmp_path / "out")
    assert all(share <= about["tolerance"]["float32"] for share in about["difference"].values())
    learner = ContinualLearner(store)
    host = learner.host
    for group, adapter in store.current.adapters.items():
        folder = tmp_path / "out" / group
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        asked = [list(sample.messages) for sample in (*colours.train, *colours.test)]
        expected = host.generate(asked, [adapter] * len(asked), max_new_tokens=6)
        for messages, answer in zip(asked, expected, strict=True):
            turns = [{"role": turn.role, "content": turn.content} for turn in messages]
            ids = tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            output = model.generate(**ids, max_new_tokens=6, do_sample=False)
            text = tokenizer.decode(
                output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True
            )
            assert text.strip() == answer


def test_an_export_that_differs_too_much_is_refused_and_nothing_is_left(
    store, tmp_path, monkeypatch
):
    monkeypatch.setitem(peft.TOLERANCE, "float32", -1.0)
    with pytest.raises(StoreError, match="group g1: merged, its logits differ by"):
        export_merged(store, tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_the_card_says_what_the_hub_and_people_want_to_know(store, tmp_path, tiny_model):
    export_peft(store, tmp_path / "out")
    learned = (tmp_path / "out" / "g1" / "README.md").read_text(encoding="utf-8")
    card = ModelCard(learned)
    assert card.data.library_name == "peft"
    assert "lcia" in card.data.tags
    version = store.current
    place = version.manifest["tasks"]["colours"].rpartition("/")[2]
    now = version.matrix()[1, 1]
    result = card.data.eval_results[0]
    assert (result.dataset_name, result.metric_type) == ("colours", "exact_match")
    assert result.metric_value == round(now, 1)
    assert place[:12] in learned
    assert "Say the letter of the colour." in learned
    assert f"{now:.1f}" in learned
    imported = (tmp_path / "out" / "g2" / "README.md").read_text(encoding="utf-8")
    assert "Not measured: the adapter was imported without data." in imported
    assert ModelCard(imported).data.eval_results is None


def test_the_card_names_base_and_licence_where_they_are_known(store, tmp_path, tiny_model):
    base = shutil.copytree(tiny_model, tmp_path / "base")
    (base / "README.md").write_text("---\nlicense: mit\n---\n# Base\n")
    from lcia.exports.folder import license_of

    assert license_of(str(base)) == "mit"
    assert license_of("smollm2-135m") == "apache-2.0"
    assert license_of("org/name") is None


@pytest.mark.parametrize("form", ["peft", "merged", "vllm"])
def test_the_command_writes_each_format(store, tmp_path, form):
    out = tmp_path / "out"
    arguments = ["export", str(store.root), str(out), "--format", form]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.exception
    about = json.loads((out / "lcia.json").read_text())
    assert about["adapters"].keys() == {"g1", "g2"}
    cards = [out] if form == "vllm" else [out / "g1", out / "g2"]
    for folder in cards:
        head = (folder / "README.md").read_text(encoding="utf-8").split("---")[1]
        assert yaml.safe_load(head)["tags"][0] == "lcia"
    with pytest.raises(StoreError, match="is not empty"):
        export_peft(store, out)
    if form == "merged":
        assert load_file(out / "g1" / "model.safetensors")


def test_an_export_for_vllm_needs_no_server_of_ours(store, tmp_path):
    out = tmp_path / "out"
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['fastapi', 'uvicorn', 'prometheus_client']))\n"
        f"sys.argv = ['lcia', 'export', {str(store.root)!r}, {str(out)!r}]\n"
        "from lcia.cli.main import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (out / "serve.sh").is_file()


class Hub(ThreadingHTTPServer):
    """Keeps what is pushed, and refuses tokens that it does not know."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answers)
        self.asked, self.made, self.files = [], {}, {}

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    """The calls of a push whose files all go with the commit."""

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self.server.asked.append(f"GET {self.path}")
        self.reply({"error": "not here"}, 404)

    def do_POST(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else self.chunks()
        self.server.asked.append(f"POST {self.path}")
        if self.headers.get("Authorization") != "Bearer hf_right":
            self.reply({"error": "Invalid credentials"}, 401)
        elif self.path == "/api/repos/create":
            self.server.made = json.loads(body)
            self.reply({"url": f"{self.server.url}/user/tickets"})
        elif self.path == "/api/validate-yaml":  # the model card
            self.reply({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files
            ]
            self.reply({"files": modes})
        elif "/commit/" in self.path:
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    self.server.files[entry["value"]["path"]] = content
                elif entry["key"] == "header":
                    self.server.summary = entry["value"]["summary"]
            self.reply(
                {"commitUrl": f"{self.server.url}/user/tickets/commit/a", "commitOid": "a" * 40}
            )
        else:
            self.reply({"error": "unknown"}, 404)

    def chunks(self):
        """Read a body that is sent in chunks."""
        body = b""
        while size := int(self.rfile.readline() or b"0", 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        return body

    def reply(self, value, status=200):
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@pytest.fixture
def hub():
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()


def pushed(hub, pushed_store, out, token):
    """Run the real command, with the hub's address."""
    env = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url, "HF_TOKEN": token}
    command = [sys.executable, "-m", "lcia", "export", str(pushed_store.root), str(out)]
    command += ["--format", "peft", "--push", "user/tickets"]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def pushed_store(tmp_path_factory, tiny_model, colours):
    from lcia.config import AssistantConfig
    from lcia.learner import ContinualLearner

    config = AssistantConfig(model=str(tiny_model), dtype="float32", training={"max_steps": 1})
    learner = ContinualLearner.create(tmp_path_factory.mktemp("hub") / "assistant", config)
    learner.learn(colours)
    return learner.store


def test_a_push_uploads_every_file_of_the_export(hub, pushed_store, tmp_path):
    done = pushed(hub, pushed_store, tmp_path / "out", "hf_right")
    assert done.returncode == 0, done.stderr
    assert f"Pushed: {hub.url}/user/tickets" in done.stdout
    assert (hub.made["name"], hub.made["organization"], hub.made["visibility"]) == (
        "tickets",
        "user",
        "private",
    )
    files = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")}
    assert hub.files.keys() == files >= {"README.md", "lcia.json", "g1/adapter_model.safetensors"}
    for name, content in hub.files.items():
        assert content == (tmp_path / "out" / name).read_bytes()
    assert hub.summary == "Version 1 of assistant"


def test_a_refused_push_leaves_the_export_and_says_how_to_go_on(hub, pushed_store, tmp_path):
    done = pushed(hub, pushed_store, tmp_path / "out", "hf_wrong")
    assert done.returncode == 1
    assert done.stderr.startswith("user/tickets: could not be pushed: ")
    assert f"'hf upload user/tickets {tmp_path / 'out'}' pushes it." in done.stderr
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "out" / "g1" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("name", ["tickets", "a/b/c", "user/..", "user/na me"])
def test_what_is_no_repository_is_refused_before_anything_is_written(name):
    with pytest.raises(ConfigError, match="expected user/name"):
        check_push(name)


def test_who_is_not_logged_in_is_told_so(monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(ConfigError, match="hf auth login"):
        check_push("user/name")
