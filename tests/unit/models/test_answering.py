"""How answers end: what is trained is what stops, whatever the template's shape."""

import datetime
import re

import pytest
import torch
from transformers import GenerationConfig

from lcia.data import Message, Sample
from lcia.errors import ConfigError, ModelError
from lcia.models import AdapterHost, BaseModel, ChatFormat
from lcia.models.answering import ModelFacts, TemplateSettings, settle_generation
from templates import CHAT_TOKENS, CHATML, SHAPES, byte_tokenizer, shaped, tiny_llama

ALL = sorted(SHAPES)


def sample(answer="ok", prompt="Say ok.", number=1) -> Sample:
    message = Message(role="user", content=f"{prompt} {number}")
    return Sample(id=str(number), messages=(message,), answers=(answer,))


def chat_of(tokenizer, **options) -> ChatFormat:
    return ChatFormat(tokenizer, max_prompt_tokens=200, **options)


def host_of(tokenizer, *, template=None, generation=None, **options) -> AdapterHost:
    model = tiny_llama(tokenizer, **options).eval()
    if generation is not None:
        model.generation_config = generation
    facts = ModelFacts.of(model.config, model.generation_config)
    settle_generation(model)
    base = BaseModel(name="tiny", model=model, tokenizer=tokenizer, facts=facts)
    return AdapterHost(base, template=template)


def learn_by_heart(host, samples, steps=150):
    batch = host.chat.collate([host.chat.encode_example(s) for s in samples])
    model = host.base.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("shape", ALL)
def test_what_is_trained_ends_an_answer_and_comes_back_as_it_was(shape):
    chat = chat_of(shaped(shape))
    for answer in ("ok", "a longer one.\nOf two lines", "é 中", "1,5 < 2 | <think"):
        ids = chat.encode_example(sample(answer)).answer_ids
        assert chat.answering.ended(ids)
        assert chat.answering.answer(ids) == answer
        assert chat.answering.answer([*ids, *ids]) == answer, "what comes after the end is cut"


@pytest.mark.parametrize("shape", [s for s in ALL if s not in {"plain", "reasoning"}])
def test_prompt_and_answer_are_the_tokens_of_the_answered_conversation(shape):
    tokenizer = shaped(shape)
    chat = chat_of(tokenizer)
    example = chat.encode_example(sample())
    turns = [
        {"role": "user", "content": "Say ok. 1"},
        {"role": "assistant", "content": "ok"},
    ]
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    whole = re.sub(r"Today is [^.]*", "Today is 26 Jul 2024", whole)
    wanted = tokenizer(whole, add_special_tokens=False)["input_ids"]
    if shape == "llama2":  # the blank before its end is not trained
        blank = tokenizer(" ", add_special_tokens=False)["input_ids"][0]
        assert wanted.pop(-2) == blank
    found = example.prompt_ids + example.answer_ids
    rest = wanted[len(found) :]
    assert found[: len(wanted)] == wanted[: len(found)]
    assert tokenizer.decode(rest, skip_special_tokens=True).strip() == ""


@pytest.mark.parametrize("shape", ["chatml", "phi3", "thinking", "reasoning", "endless", "plain"])
def test_what_is_learned_stops(shape):
    host = host_of(shaped(shape))
    samples = [sample(number=i) for i in range(3)]
    learn_by_heart(host, samples)
    asked = [s.messages for s in samples]
    assert host.generate(asked, [None] * 3, max_new_tokens=32) == ["ok"] * 3


def test_a_turn_end_of_several_tokens_stops_answers_and_is_left_out():
    host = host_of(byte_tokenizer(CHATML))
    assert host.chat.answering.stop_strings == ("<|im_end|>",)
    samples = [sample(number=i) for i in range(3)]
    learn_by_heart(host, samples)
    asked = [s.messages for s in samples]
    assert host.generate(asked, [None] * 3, max_new_tokens=32) == ["ok"] * 3
    cut_in_two = host.generate(asked, [None] * 3, max_new_tokens=6)
    assert cut_in_two == ["ok"] * 3


def test_a_turn_that_is_not_ended_stops_where_the_next_begins():
    tokenizer = shaped("endless")
    stops = chat_of(tokenizer).answering.stop_ids
    assert stops == set(tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|user|>"]))


def test_phi_3_stops_at_its_end_of_turn_and_trains_nothing_behind_it():
    tokenizer = shaped("phi3")
    example = chat_of(tokenizer).encode_example(sample())
    assert tokenizer.decode(example.answer_ids) == "ok<|end|>"


def test_the_models_own_end_tokens_stop_answers():
    tokenizer = byte_tokenizer(CHATML, (*CHAT_TOKENS, "<|eom|>"))
    eom = tokenizer.convert_tokens_to_ids("<|eom|>")
    host = host_of(tokenizer, generation=GenerationConfig(eos_token_id=[0, eom]))
    assert eom in host.chat.answering.stop_ids


def test_an_architectures_default_end_is_no_end_where_text_yields_it():
    tokenizer = byte_tokenizer(CHATML, CHAT_TOKENS)
    quote = tokenizer('"', add_special_tokens=False)["input_ids"][0]
    host = host_of(tokenizer, eos_token_id=quote)
    assert quote not in host.chat.answering.stop_ids
    chosen = host_of(tokenizer, generation=GenerationConfig(eos_token_id=[0, quote]))
    assert quote in chosen.chat.answering.stop_ids


def test_held_out_answers_are_greedy_whatever_the_generation_config_asks_for():
    tokenizer = shaped("chatml")
    asks = GenerationConfig(
        repetition_penalty=5.0, num_beams=3, temperature=0.1, do_sample=True, eos_token_id=0
    )
    plain, penalised = host_of(tokenizer), host_of(tokenizer, generation=asks)
    prompts = [(Message(role="user", content=text),) for text in ("aaaa", "b b b b", "?")]
    wanted = plain.generate(prompts, [None] * 3, max_new_tokens=12)
    assert penalised.generate(prompts, [None] * 3, max_new_tokens=12) == wanted
    assert set(penalised.base.facts.ignored) == {
        "repetition_penalty",
        "num_beams",
        "temperature",
        "do_sample",
    }


def test_a_thought_that_the_prompt_opens_is_closed_before_the_answer():
    tokenizer = shaped("reasoning")
    chat = chat_of(tokenizer)
    example = chat.encode_example(sample())
    assert tokenizer.decode(example.prompt_ids).endswith("<|assistant|><think>\n")
    assert tokenizer.decode(example.answer_ids) == "\n</think>\n\nok<|end|>"
    assert chat.answering.answer(example.answer_ids) == "ok"
    own = chat.encode_example(sample("It is easy.\n</think>\n\nok"))
    assert tokenizer.decode(own.answer_ids) == "It is easy.\n</think>\n\nok<|end|>"


@pytest.mark.parametrize("thinking", [True, False])
def test_template_settings_reach_prompts_in_training_and_in_answering(thinking):
    template = TemplateSettings(kwargs={"enable_thinking": thinking})
    tokenizer = shaped("thinking")
    chat = chat_of(tokenizer, template=template)
    example = chat.encode_example(sample())
    block = "<think>\n\n</think>\n\n"
    assert (block in tokenizer.decode(example.prompt_ids)) is not thinking
    assert tokenizer.decode(example.answer_ids) == (block if thinking else "") + "ok<|im_end|>"
    assert chat.answering.answer(example.answer_ids) == "ok"


def test_what_the_template_writes_before_answers_costs_no_tokens_of_the_answer():
    host = host_of(shaped("thinking"))
    samples = [sample(number=i) for i in range(3)]
    learn_by_heart(host, samples)
    asked = [s.messages for s in samples]
    assert host.generate(asked, [None] * 3, max_new_tokens=2) == ["ok"] * 3


def test_thoughts_of_a_gold_answer_stay_thoughts():
    tokenizer = byte_tokenizer(CHATML, CHAT_TOKENS, words=("<think>", "</think>"))
    ids = chat_of(tokenizer).encode_example(sample("<think>\nhm\n</think>\n\nok")).answer_ids
    assert ids[0] == tokenizer.convert_tokens_to_ids("<think>")


def test_a_templates_today_is_a_fixed_day():
    tokenizer = shaped("dated")
    (ids, _), (later, _) = (
        chat_of(tokenizer, template=template).encode_prompt(sample().messages)
        for template in (None, TemplateSettings(date=datetime.date(2030, 1, 2)))
    )
    assert tokenizer.decode(ids).startswith("Today is 26 Jul 2024.")
    assert tokenizer.decode(later).startswith("Today is 02 Jan 2030.")


def test_a_template_without_a_system_turn_is_told_with_a_remedy_that_works():
    turns = (Message(role="system", content="Be brief."), *sample().messages)
    tokenizer = shaped("gemma")
    with pytest.raises(
        ModelError, match=r"refuses the turns system, user: System role not"
    ) as told:
        chat_of(tokenizer).encode_prompt(turns)
    assert "generation.fold_system=true" in str(told.value)
    folded = chat_of(tokenizer, template=TemplateSettings(fold_system=True))
    text = tokenizer.decode(folded.encode_prompt(turns)[0])
    assert (
        text
        == "<bos><start_of_turn>user\nBe brief.\n\nSay ok. 1<end_of_turn>\n<start_of_turn>model\n"
    )


def appending(tokenizer):
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A <|endoftext|>", special_tokens=[("<s>", 1), ("<|endoftext|>", 0)]
    )
    return tokenizer


def test_a_tokenizer_that_appends_its_end_puts_none_between_prompt_and_answer():
    tokenizer = appending(byte_tokenizer(None, ("<s>",), bos_token="<s>"))
    example = chat_of(tokenizer).encode_example(sample())
    assert tokenizer.decode(example.prompt_ids) == "<s>Say ok. 1\n"
    assert tokenizer.decode(example.answer_ids) == "ok<|endoftext|>"


@pytest.mark.parametrize("shape", ALL)
def test_gold_answers_that_hold_control_tokens_survive(shape):
    tokenizer = shaped(shape)
    chat = chat_of(tokenizer)
    for answer in [f"end with {tokenizer.eos_token}", *tokenizer.all_special_tokens]:
        ids = chat.encode_example(sample(answer)).answer_ids
        assert chat.answering.answer(ids) == answer


def test_padding_that_is_a_letter_is_a_letter_in_answers():
    tokenizer = byte_tokenizer(CHATML, CHAT_TOKENS, pad_token="!")
    chat = chat_of(tokenizer)
    assert chat.answering.answer(chat.encode_example(sample("hey! you!")).answer_ids) == "hey! you!"


def test_no_padding_and_padding_beyond_the_embedding_are_replaced():
    rows = len(byte_tokenizer(CHATML, CHAT_TOKENS))
    beyond = byte_tokenizer(CHATML, CHAT_TOKENS, words=("[PAD]",), pad_token="[PAD]")
    assert beyond.pad_token_id == rows
    for tokenizer in (beyond, byte_tokenizer(CHATML, CHAT_TOKENS, pad_token=None)):
        host = host_of(tokenizer, vocab_size=rows)
        assert host.chat.pad_id == 0
        prompts = [(Message(role="user", content=text),) for text in ("a", "a longer one [PAD]")]
        alone = [host.generate([p], [None], max_new_tokens=5)[0] for p in prompts]
        assert host.generate(prompts, [None] * 2, max_new_tokens=5) == alone


def test_a_model_whose_embedding_lacks_the_templates_tokens_is_refused():
    tokenizer = byte_tokenizer(CHATML, words=CHAT_TOKENS)
    facts = ModelFacts(vocabulary=len(tokenizer) - 2)
    with pytest.raises(
        ModelError, match=r"the token '<\|im_start\|>' with the id 257, .* 257 rows"
    ):
        chat_of(tokenizer, facts=facts)


def test_no_end_token_at_all_is_refused_and_the_models_own_is_taken():
    tokenizer = byte_tokenizer(None, eos_token=None, pad_token=None)
    with pytest.raises(ModelError, match="nothing says where an answer ends"):
        chat_of(tokenizer)
    host = host_of(tokenizer, generation=GenerationConfig(eos_token_id=0))
    example = host.chat.encode_example(sample())
    assert example.answer_ids[-1] == 0
    assert host.chat.answering.answer(example.answer_ids) == "ok"
    learn_by_heart(host, [sample()])
    assert host.generate([sample().messages], [None], max_new_tokens=9) == ["ok"]


def test_prompts_leave_room_for_the_answer_within_the_models_positions():
    host = host_of(shaped("chatml"), max_position_embeddings=64)
    long = sample(prompt="first " + "x" * 300 + " last")
    example = host.chat.encode_example(long)
    assert example.truncated
    assert len(example.prompt_ids) + len(example.answer_ids) == 64
    ids, cut = host.chat.encode_prompt(long.messages, answer_tokens=20)
    text = host.base.tokenizer.decode(ids)
    assert cut
    assert len(ids) == 44
    assert text.startswith("<|im_start|>user\nfirst")
    assert text.endswith("<|im_start|>assistant\n")
    with pytest.raises(ConfigError, match="at most 48"):
        host.generate([long.messages], [None], max_new_tokens=60)


def test_learned_positions_are_never_left():
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = shaped("chatml")
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=48, n_embd=32, n_layer=1, n_head=2, eos_token_id=0
    )
    base = BaseModel(
        name="g",
        model=GPT2LMHeadModel(config).eval(),
        tokenizer=tokenizer,
        facts=ModelFacts.of(config),
    )
    host = AdapterHost(base)
    long = sample(prompt="x" * 300)
    batch = host.chat.collate([host.chat.encode_example(long), host.chat.encode_example(sample())])
    assert torch.isfinite(base.model(**batch).loss)
    host.generate([long.messages, sample().messages], [None] * 2, max_new_tokens=16)
