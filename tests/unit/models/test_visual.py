"""Batches with and without images, for every family; only answers are labels."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from PIL import Image as PILImage
from safetensors.torch import load_file

from lcia.data import Image, Message, Sample
from lcia.errors import ConfigError, MissingDependencyError, ModelError
from lcia.models import AdapterHost, load_model
from lcia.models.loading import quantization
from lcia.models.visual import PROJECTOR, Projector, VisualFormat
from tiny_visual import FAMILIES, llava, save


@pytest.fixture(scope="module")
def hosts(tmp_path_factory) -> dict[str, AdapterHost]:
    folder = tmp_path_factory.mktemp("families")
    return {
        family: AdapterHost(load_model(str(save(build, folder / family)), dtype="float32"))
        for family, build in FAMILIES.items()
    }


@pytest.fixture(params=FAMILIES)
def host(request, hosts) -> AdapterHost:
    return hosts[request.param]


@pytest.fixture
def samples(tmp_path) -> list[Sample]:
    """With an image, without, with two of different size, with the text of an image's token."""
    for name, size in {"a": (60, 40), "b": (50, 90)}.items():
        PILImage.effect_noise(size, 90).convert("RGB").save(tmp_path / f"{name}.png")

    def sample(text: str, answer: str, *images: tuple[str, int]) -> Sample:
        images = tuple(Image(path=str(tmp_path / f"{n}.png"), at=at) for n, at in images)
        asked = Message(role="user", content=text, images=images)
        return Sample(id=text, messages=(asked,), answers=(answer,))

    return [
        sample("What is it?", "no", ("a", 0)),
        sample("How much is two and two?", "four"),
        sample("Is or the same?", "the second one", ("a", 3), ("b", 6)),
        sample("What do <image> and <|image_pad|> say?", "x"),
    ]


def batch_of(host: AdapterHost, samples: list[Sample]) -> dict:
    return host.chat.collate([host.chat.encode_example(sample) for sample in samples])


def test_labels_are_the_answers_and_nothing_else(host, samples):
    batch = batch_of(host, samples)
    for labels, sample in zip(batch["labels"], samples, strict=True):
        learned = host.base.tokenizer.decode(labels[labels != -100])
        assert learned == f"{sample.answers[0]}<|end|>"


def test_a_mixed_batch_has_the_loss_of_its_samples_one_by_one(host, samples):
    def loss(batch) -> tuple[float, int]:
        with torch.no_grad():
            tokens = int((batch["labels"] != -100).sum())
            return host.base.model(**batch).loss.item() * tokens, tokens

    alone = [loss(batch_of(host, [sample])) for sample in samples]
    total, tokens = loss(batch_of(host, samples))
    assert tokens == sum(count for _, count in alone)
    assert total == pytest.approx(sum(part for part, _ in alone), rel=1e-4)


def test_kept_logits_give_the_loss_of_all_logits(host, samples):
    assert host.chat.keep_logits
    whole = VisualFormat(host.base.processor, max_prompt_tokens=1024)
    examples = [whole.encode_example(sample) for sample in samples]
    with torch.no_grad():
        losses = [host.base.model(**chat.collate(examples)).loss for chat in (host.chat, whole)]
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-5)


def test_answers_in_a_mixed_batch_are_those_given_alone(host, samples):
    conversations = [sample.messages for sample in samples]
    nobody = [None] * len(samples)
    together = host.generate(conversations, nobody, max_new_tokens=5)
    alone = [host.generate([c], [None], max_new_tokens=5)[0] for c in conversations]
    assert together == alone


def test_images_stand_between_the_words(host, samples):
    rows, _, _ = host.chat._process([samples[2].messages])
    image = host.base.processor.image_token_id
    text = host.base.tokenizer.decode([token for token in rows[0] if token != image])
    assert rows[0].count(image) >= 2
    assert text.index("Is") < text.index("or") < text.index("the same?")
    middle = host.base.tokenizer.decode(rows[0])
    middle = middle[middle.index("Is") : middle.index("the same?")]
    assert host.base.processor.image_token in middle.partition("or")[0]
    assert host.base.processor.image_token in middle.partition("or")[2]


def test_a_long_prompt_loses_the_middle_of_its_text_and_no_image(host, samples, tmp_path):
    short = VisualFormat(host.base.processor, max_prompt_tokens=60, keep_logits=True)
    words = f"Start {'x' * 400} end"
    long = Message(role="user", content=words, images=samples[0].messages[0].images)
    example = short.encode_example(Sample(id="1", messages=(long,), answers=("no",)))
    assert example.truncated
    row = short.collate([example])["input_ids"][0]
    image = host.base.processor.image_token_id
    shown = host.chat.prompts([samples[0].messages])["input_ids"][0]
    assert (row == image).sum() == (shown == image).sum()
    text = host.base.tokenizer.decode(row[row != image], skip_special_tokens=True).strip()
    assert text.startswith("Start x")
    assert text.endswith("x end\nno")
    assert text.count("x") < 60
    with torch.no_grad():
        assert host.base.model(**short.collate([example])).loss.isfinite()


def test_only_the_language_model_and_the_projector_are_trained(host):
    model = host.new_adapter(LoraConfig(r=2, target_modules="all-linear"))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    projector = {name for name in trained if "lora_" not in name}
    assert all(".language_model." in n or ".text_model." in n for n in trained - projector)
    assert not [n for n in trained - projector if "vision" in n or "visual" in n]
    assert len(projector) == len(host.projector.parameters()) > 0
    host.clear()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_batch_without_images_leaves_zero_gradients_and_not_none(host, samples, checkpointing):
    model = host.new_adapter(LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model(**batch_of(host, [samples[1]])).loss.backward()
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(grad is not None for grad in grads)
    assert all(p.grad.abs().sum() == 0 for p in host.projector.parameters())
    model(**batch_of(host, samples)).loss.backward()
    assert any(p.grad.abs().sum() > 0 for p in host.projector.parameters())
    model.gradient_checkpointing_disable()
    host.clear()


def adapters(host: AdapterHost, folder: Path) -> list[tuple[str, Path]]:
    """Two adapters with projectors of their own, and one that has none."""
    found = []
    for i in range(3):
        torch.manual_seed(i)
        model = host.new_adapter(
            LoraConfig(r=2, init_lora_weights=i == 0, target_modules=["q_proj"])
        )
        with torch.no_grad():
            for parameter in host.projector.parameters():
                parameter.normal_(std=5.0)
        model.save_pretrained(folder / f"a{i}")
        if i < 2:
            host.projector.save(folder / f"a{i}")
        found.append((f"a{i}", folder / f"a{i}"))
    host.clear()
    return found


def test_each_row_of_a_mixed_batch_goes_through_the_projector_of_its_group(host, samples, tmp_path):
    groups = [*adapters(host, tmp_path), None]
    conversations = [samples[2].messages] * 4 + [samples[0].messages] * 4
    chosen = [*groups, *groups]
    together = host.generate(conversations, chosen, max_new_tokens=8)
    alone = [
        host.generate([c], [g], max_new_tokens=8)[0]
        for c, g in zip(conversations, chosen, strict=True)
    ]
    assert together == alone
    host.generate([samples[0].messages], [groups[1]], max_new_tokens=1)
    used = {name: p.detach() for name, p in host.base.model.named_parameters()}
    assert all(torch.equal(used[n], p) for n, p in load_file(groups[1][1] / PROJECTOR).items())


def test_clearing_gives_the_models_own_projector_back(host, samples, tmp_path):
    host.clear()
    own = [p.clone() for p in host.projector.parameters()]
    before = host.generate([samples[0].messages], [None], max_new_tokens=5)
    adapters(host, tmp_path)
    assert all(map(torch.equal, own, host.projector.parameters()))
    assert not any(p.requires_grad for p in host.projector.parameters())
    assert host.generate([samples[0].messages], [None], max_new_tokens=5) == before


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
    stored = load_file(tmp_path / PROJECTOR)
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
