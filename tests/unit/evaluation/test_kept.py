"""Answers kept as they come: what is whole counts, what is not is answered again."""

import pytest

from lcia.evaluation.generate import Request, generate
from lcia.evaluation.kept import Keep, KeptAnswers
from lcia.models import AdapterHost, load_model


def filled(path):
    kept = KeptAnswers(path, "asked")
    kept.add({0: "a\u2028b", 3: ""})
    kept.add({1: "\ud800 half a pair\r\n"})
    return kept.answers


def test_answers_come_back_as_they_were(tmp_path):
    path = tmp_path / "answers.jsonl"
    assert filled(path) == KeptAnswers(path, "asked").answers


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_line_that_was_cut_off_is_dropped_and_the_file_goes_on(tmp_path, cut):
    path = tmp_path / "answers.jsonl"
    filled(path)
    path.write_bytes(path.read_bytes()[:-cut])
    kept = KeptAnswers(path, "asked")
    assert set(kept.answers) == {0, 3}
    kept.add({7: "more"})
    assert set(KeptAnswers(path, "asked").answers) == {0, 3, 7}


def test_every_flipped_bit_costs_a_line_and_never_yields_another_answer(tmp_path):
    path = tmp_path / "answers.jsonl"
    good = filled(path)
    content = path.read_bytes()
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        kept = KeptAnswers(path, "asked").answers
        assert kept.items() < good.items()


def test_answers_to_other_requests_are_not_taken(tmp_path):
    path = tmp_path / "answers.jsonl"
    filled(path)
    assert KeptAnswers(path, "others").answers == {}
    assert KeptAnswers(path, "asked").answers == {}, "the file is the others' now"


def test_generating_goes_on_after_what_is_kept_in_the_same_batches(tiny_model, colours, tmp_path):
    keep = Keep(path=tmp_path / "answers.jsonl")
    requests = [
        Request(messages=sample.messages, adapter=None, max_new_tokens=4) for sample in colours.test
    ]
    hosts = [AdapterHost(load_model(str(tiny_model), dtype="float32")) for _ in range(2)]
    whole = generate(hosts[0], requests, batch_size=2, keep=keep)
    lines = keep.path.read_bytes().splitlines(keepends=True)
    keep.path.write_bytes(b"".join(lines[:2]))
    asked, original = [], hosts[1].generate

    def counting(conversations, adapters, **options):
        asked.append(len(conversations))
        return original(conversations, adapters, **options)

    hosts[1].generate = counting
    assert generate(hosts[1], requests, batch_size=2, keep=keep) == whole
    assert asked == [2]
    elsewhere = Keep(path=keep.path, given="other weights")
    hosts[1].base_answers = type(hosts[1].base_answers)(8)
    assert generate(hosts[1], requests, batch_size=2, keep=elsewhere) == whole
    assert asked == [2, 2, 2]
