"""Encoder-decoders: the prompt is the input, the answer the labels, padded on the right."""

import torch

from lcia.data import Message, Sample
from lcia.models import AdapterHost, load_model
from lcia.models.seq2seq import Seq2SeqFormat
from tiny_visual import save, t5


def sample(prompt: str, answer: str) -> Sample:
    return Sample(id=prompt, messages=(Message(role="user", content=prompt),), answers=(answer,))


def test_batches_and_their_loss(tmp_path):
    host = AdapterHost(load_model(str(save(t5, tmp_path)), dtype="float32"))
    assert isinstance(host.chat, Seq2SeqFormat)
    samples = [sample("Say yes to this.", "yes"), sample("No?", "not at all")]
    examples = [host.chat.encode_example(s) for s in samples]
    batch = host.chat.collate(examples)
    decode = host.base.tokenizer.decode
    for row, labels, s in zip(batch["input_ids"], batch["labels"], samples, strict=True):
        assert decode(row[: len(s.prompt) + 1]) == f"{s.prompt}\n"
        assert decode(labels[labels != -100]) == f"{s.answers[0]}<|end|>"
    assert batch["attention_mask"].sum(1).tolist() == [len(s.prompt) + 1 for s in samples]
    with torch.no_grad():
        whole = host.base.model(**batch).loss.item()
        parts = [host.base.model(**host.chat.collate([e])).loss.item() for e in examples]
    counts = [len(e.answer_ids) for e in examples]
    mean = sum(p * n for p, n in zip(parts, counts, strict=True)) / sum(counts)
    assert abs(whole - mean) < 1e-5
