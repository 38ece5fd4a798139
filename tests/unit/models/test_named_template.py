"""A base model without a chat template takes a named one, which the assistant records."""

import shutil

import pytest
from transformers import AutoTokenizer

from lcia.config import AssistantConfig, parse_config
from lcia.data import Message, Sample
from lcia.errors import ConfigError
from lcia.learner import ContinualLearner, Store
from lcia.models import ChatFormat
from lcia.models.answering import TemplateSettings
from lcia.store.fingerprint import fingerprint
from templates import CHAT_TOKENS, byte_tokenizer

SAMPLE = Sample(id="1", messages=(Message(role="user", content="2+2?"),), answers=("4",))
CHATML = TemplateSettings(named="chatml")
WRITTEN = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>"


@pytest.mark.parametrize("specials", [CHAT_TOKENS, ()])
def test_turns_stand_between_the_marks_whether_they_are_tokens_or_text(specials):
    chat = ChatFormat(byte_tokenizer(None, specials), max_prompt_tokens=99, template=CHATML)
    example = chat.encode_example(SAMPLE)
    assert chat.tokenizer.decode(example.prompt_ids + example.answer_ids) == WRITTEN
    assert chat.answering.ended(example.answer_ids)
    assert chat.answering.answer(example.answer_ids) == "4"


def test_a_model_with_a_template_of_its_own_refuses_it(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    with pytest.raises(ConfigError, match="the model has a chat template of its own"):
        ChatFormat(tokenizer, max_prompt_tokens=99, template=CHATML)


def test_it_is_recorded_and_counts_in_fingerprints_only_where_it_is_set(
    tmp_path, tiny_model, colours
):
    base = shutil.copytree(tiny_model, tmp_path / "base")
    for name in base.glob("chat_template*"):
        name.unlink()
    tree = {"model": str(base), "generation": {"chat_template": "chatml"}}
    config = parse_config(AssistantConfig, tree, where="test")
    learner = ContinualLearner.create(tmp_path / "store", config)
    learner.learn(colours)
    again = Store.open(tmp_path / "store")
    assert again.config.generation.chat_template == "chatml"
    assert ContinualLearner(again).host.chat.template.named == "chatml"
    plain = AssistantConfig(model=str(base))
    assert "chat_template" not in plain.model_dump(mode="json")["generation"]
    assert fingerprint(plain, colours, model="x") != fingerprint(config, colours, model="x")


def test_an_unknown_name_is_refused():
    tree = {"model": "m", "generation": {"chat_template": "chatlm"}}
    with pytest.raises(ConfigError, match="chat_template"):
        parse_config(AssistantConfig, tree, where="test")
