"""Foreign adapters become groups: other ranks, scalings and modules, with and without data."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lcia.config import AssistantConfig
from lcia.data import Message
from lcia.errors import ConfigError, StoreError
from lcia.learner import ContinualLearner, Store, import_adapter, import_with_data, merge_groups
from lcia.serving.engine.bank import AdapterBank

RSLORA = {"r": 3, "lora_alpha": 7, "use_rslora": True, "target_modules": ["q_proj", "down_proj"]}
WIDE = {"r": 12, "lora_alpha": 5, "target_modules": "all-linear", "rank_pattern": {"q_proj": 5}}


def foreign(tiny_model, folder, **settings):
    """Write an adapter as somebody else would have trained it."""
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    torch.manual_seed(1)
    model = get_peft_model(base, LoraConfig(**settings))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(tiny_model, tmp_path_factory, colours) -> ContinualLearner:
    config = AssistantConfig(
        model=str(tiny_model),
        dtype="float32",
        training={"num_train_epochs": 1, "learning_rate": 1e-2},
        adapter={"r": 4},
    )
    learner = ContinualLearner.create(tmp_path_factory.mktemp("made") / "assistant", config)
    learner.learn(colours)
    return learner


@pytest.fixture
def learner(made, tmp_path) -> ContinualLearner:
    root = shutil.copytree(made.store.root, tmp_path / "assistant")
    return ContinualLearner(Store.open(root), host=made.host)


@pytest.mark.parametrize("settings", [RSLORA, WIDE], ids=["rslora", "wide"])
def test_with_data_it_is_scored_answers_as_in_peft_and_is_learned_on(
    learner, tiny_model, tmp_path, numbers, settings
):
    folder = foreign(tiny_model, tmp_path / "adapter", **settings)
    outcome = import_with_data(learner, folder, numbers)
    assert (outcome.group, outcome.reason, outcome.version) == ("g2", "imported", 2)
    assert set(outcome.scores) == {"colours", "numbers"}
    version = learner.store.current
    assert learner.store.verify() == []
    stored = version.adapters["g2"][1]
    theirs, ours = (load_file(f / "adapter_model.safetensors") for f in (folder, stored))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)

    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    ids = torch.arange(4, 24).view(1, -1)
    expected = PeftModel.from_pretrained(base, folder)(ids).logits
    host = learner.host
    host.clear()
    bank = AdapterBank(host.base.model, max_loaded=4)
    for key, path in version.adapters.values():
        bank.acquire(key, path)
    bank.select([version.adapters["g2"][0], version.adapters["g1"][0], None])
    mixed = host.base.model(ids.repeat(3, 1)).logits
    bank.detach()
    assert torch.allclose(mixed[:1], expected, atol=1e-5)
    assert not torch.allclose(mixed[1:2], expected, atol=1e-2)

    more = replace(numbers, name="more-numbers", train=numbers.train[:8])
    again = learner.learn(more)
    assert (again.group, again.reason) == ("g2", "reuse")
    assert merge_groups(learner, "g1", "g2").number == 4
    assert learner.store.verify() == []


def test_importing_again_changes_nothing_and_another_adapter_is_refused(
    learner, tiny_model, tmp_path, numbers
):
    folder = foreign(tiny_model, tmp_path / "adapter", **RSLORA)
    assert import_with_data(learner, folder, numbers) == import_with_data(learner, folder, numbers)
    other = foreign(tiny_model, tmp_path / "other", **WIDE)
    with pytest.raises(StoreError, match="was learned from other data"):
        import_with_data(learner, other, numbers)


def test_without_data_it_is_routed_by_its_instructions_and_unmeasured(
    learner, tiny_model, tmp_path, colours
):
    folder = foreign(tiny_model, tmp_path / "adapter", **RSLORA)
    texts = ["Translate into German.", "Say it in German."]
    before = learner.store.current
    version = import_adapter(learner, folder, name="legacy", instructions=texts)
    group = version.codebook().groups[1]
    assert (group.id, group.name, set(group.instructions)) == ("g2", "legacy", set(texts))
    assert version.manifest["tasks"] == before.manifest["tasks"]
    assert version.matrix().tasks == ("colours",)
    router = learner.router()
    assert router.route("March 10\n\nSay it  in German.").group == "g2"
    assert router.route("A long text.\nTranslate into German.").group == "g2"
    assert router.route(colours.test[0].prompt).group == "g1"
    assert learner.store.verify() == []
    asked = [[Message(role="user", content="Hi.\nTranslate into German.")]]
    assert learner.host.generate(asked, [version.adapters["g2"]], max_new_tokens=4)
    assert learner.store.roll_back(before.number).adapters == before.adapters


def test_the_command_line_imports_and_shows_it(tiny_model, learner, tmp_path, capsys):
    from typer.testing import CliRunner

    from lcia.cli.main import app

    folder = foreign(tiny_model, tmp_path / "adapter", **RSLORA)
    arguments = ["import", str(learner.store.root), str(folder), "--name", "legacy"]
    failed = CliRunner().invoke(app, arguments)
    assert "--instruction TEXT" in str(failed.exception)
    done = CliRunner().invoke(app, [*arguments, "--instruction", "Translate.", "--json"])
    assert done.exit_code == 0, done.exception
    shown = CliRunner().invoke(app, ["groups", "show", str(learner.store.root)])
    assert shown.exit_code == 0
    groups = {g.name for g in Store.open(learner.store.root).current.codebook().groups}
    assert groups == {"g1", "legacy"}


def test_what_does_not_fit_is_refused(learner, tiny_model, tmp_path, numbers):
    folder = foreign(tiny_model, tmp_path / "adapter", **RSLORA)

    def refused(error, said, **options):
        options = {"name": "legacy", "instructions": ["Translate."], **options}
        with pytest.raises(error, match=said):
            import_adapter(learner, folder, **options)

    refused(ConfigError, "--instruction TEXT", instructions=[])
    refused(ConfigError, "'colours' is already a task", name="colours")
    tensors = load_file(folder / "adapter_model.safetensors")
    name = next(key for key in tensors if "lora_A" in key)

    def write(changed):
        save_file(changed, folder / "adapter_model.safetensors")

    write({**tensors, name: torch.zeros(3, 31)})
    refused(ConfigError, "has 31 in features, and this base model has 64 there")
    write({**tensors, name: torch.full_like(tensors[name], torch.nan)})
    refused(StoreError, "not finite")
    write({**tensors, name.replace("layers.0", "layers.7"): tensors[name].clone()})
    refused(ConfigError, "has no such layer")
    write({**tensors, "base_model.model.lm_head.weight": torch.zeros(2, 2)})
    refused(StoreError, "which is no LoRA matrix")
    write(tensors)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "use_dora": True}))
    refused(StoreError, "use_dora")
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    refused(StoreError, "opens no pickles")
    assert learner.store.current_number == 1


def test_an_assistant_of_one_adapter_has_no_place_for_another(tmp_path, tiny_model):
    config = AssistantConfig(model=str(tiny_model), method={"name": "sequential"})
    learner = ContinualLearner.create(tmp_path / "assistant", config)
    folder = foreign(tiny_model, tmp_path / "adapter", **RSLORA)
    with pytest.raises(ConfigError, match="keeps one adapter for all tasks"):
        import_adapter(learner, folder, name="legacy", instructions=["Translate."])
