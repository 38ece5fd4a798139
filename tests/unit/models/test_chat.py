"""From messages to tokens: the loss sees the answers, and a long prompt keeps its ends."""

import pytest
import torch
from transformers import AutoTokenizer

from lcia.data import Message, Sample
from lcia.models import ChatFormat
from lcia.models.batches import answer_batch


@pytest.fixture
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


def sample(prompt: str, answer: str) -> Sample:
    return Sample(id="1", messages=(Message(role="user", content=prompt),), answers=(answer, "no"))


def test_prompt_and_answer_make_the_conversation_the_template_makes(tokenizer):
    example = ChatFormat(tokenizer, max_prompt_tokens=200).encode_example(sample("Hi é", "Yo"))
    turns = [{"role": "user", "content": "Hi é"}, {"role": "assistant", "content": "Yo"}]
    whole = tokenizer.apply_chat_template(turns, tokenize=False).removesuffix("\n")
    assert tokenizer.decode(example.prompt_ids + example.answer_ids) == whole
    assert tokenizer.decode(example.answer_ids) == "Yo<|end|>"


def test_answers_stop_at_the_end_of_the_turn(tokenizer):
    assert ChatFormat(tokenizer, max_prompt_tokens=20).stop_ids == [tokenizer.eos_token_id]


def test_a_long_prompt_loses_its_middle_only(tokenizer):
    chat = ChatFormat(tokenizer, max_prompt_tokens=40)
    ids, cut = chat.encode_prompt([Message(role="user", content="first " + "x" * 100 + " last")])
    text = tokenizer.decode(ids)
    assert cut
    assert len(ids) == 40
    assert text.startswith("<|user|>first ")
    assert text.endswith(" last<|end|>\n<|assistant|>")


def test_without_a_chat_template_the_answer_starts_on_a_new_line(tokenizer):
    tokenizer.chat_template = None
    example = ChatFormat(tokenizer, max_prompt_tokens=99).encode_example(sample("2+2?", "4"))
    assert tokenizer.decode(example.prompt_ids) == "2+2?\n"
    assert tokenizer.decode(example.answer_ids) == "4<|end|>"


@pytest.mark.parametrize("keep_logits", [True, False])
def test_batches_end_with_their_answers_and_only_these_are_labels(keep_logits):
    batch = answer_batch([[5, 6, 7], [5]], [[8, 9], [3]], pad_id=3, keep_logits=keep_logits)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [3, 3, 3, 5, 3]]
    assert batch["attention_mask"].tolist() == [[1] * 5, [0, 0, 0, 1, 1]]
    kept = 3 if keep_logits else 5
    assert batch.get("logits_to_keep", kept) == kept
    expected = [[-100] * (kept - 2) + [8, 9], [-100] * (kept - 1) + [3]]
    assert batch["labels"].tolist() == expected


def test_kept_logits_give_the_same_loss_and_gradients_as_all_logits(tiny_model):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    prompts, answers = [[7, 30, 31, 9, 12], [7, 44]], [[50, 51, 0], [60, 0]]
    losses, grads = [], []
    for keep_logits in (True, False):
        model.zero_grad()
        batch = answer_batch(prompts, answers, pad_id=0, keep_logits=keep_logits)
        loss = model(**batch).loss
        loss.backward()
        losses.append(loss.item())
        grads.append(model.model.layers[0].mlp.up_proj.weight.grad.clone())
    assert losses[0] == pytest.approx(losses[1], abs=1e-12)
    assert torch.allclose(grads[0], grads[1], atol=1e-12)
