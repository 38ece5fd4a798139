"""The projector beside an adapter: trained in float32, restored exactly, refused where unknown."""

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

from lcia.errors import ConfigError, MissingDependencyError, ModelError
from lcia.models import AdapterHost, load_model
from lcia.models.loading import quantization
from lcia.models.projector import FILE, Projector
from tiny_visual import llava, save


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save(llava, tmp_path_factory.mktemp("llava"))


def test_it_is_trained_in_float32_and_answers_in_the_models_dtype(model_folder, tmp_path):
    host = AdapterHost(load_model(str(model_folder), dtype="bfloat16"))
    own = [p.clone() for p in host.projector.parameters()]
    host.new_adapter(LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path)
    assert {p.dtype for p in host.projector.parameters()} == {torch.float32}
    with torch.no_grad():
        for parameter in host.projector.parameters():
            parameter.add_(1e-4)  # less than bfloat16 can add to most values
    host.projector.save(tmp_path)
    trained = [p.clone() for p in host.projector.parameters()]
    host.clear()
    assert all(map(torch.equal, own, host.projector.parameters()))
    assert {p.dtype for p in host.projector.parameters()} == {torch.bfloat16}
    host.adapter_to_train(tmp_path)
    assert all(map(torch.equal, trained, host.projector.parameters())), "nothing is rounded away"


def test_its_file_names_the_models_own_parameters(model_folder, tmp_path):
    host = AdapterHost(load_model(str(model_folder), dtype="float32"))
    host.projector.save(tmp_path)
    names = dict(host.base.model.named_parameters())
    stored = load_file(tmp_path / FILE)
    assert stored.keys() < names.keys()
    assert all(torch.equal(names[name], value) for name, value in stored.items())


def test_frozen_leaves_it_alone(model_folder):
    host = AdapterHost(load_model(str(model_folder), dtype="float32"), projector=False)
    model = host.new_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    assert host.projector is None
    assert all("lora_" in name for name, p in model.named_parameters() if p.requires_grad)


def test_a_model_without_a_known_projector_is_refused(tiny_model):
    model = load_model(str(tiny_model), dtype="float32").model
    with pytest.raises(ModelError, match=r"LlamaForCausalLM has no projector .* projector: frozen"):
        Projector(model)


def test_quantization_says_what_it_needs(monkeypatch):
    with pytest.raises(ConfigError, match=r"'3bit' is not known\. Choices: 4bit, 8bit"):
        quantization("3bit", dtype=torch.float32)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r'pip install "lcia\[qlora\]"'):
        quantization("4bit", dtype=torch.float32)
