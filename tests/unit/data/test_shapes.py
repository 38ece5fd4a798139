"""Twelve shapes in which people have their data: each is checked, read and made into tokens."""

from pathlib import Path

import pytest

from lcia.data import TaskConfig, check, load_task
from lcia.models import ChatFormat
from templates import shaped

SHAPES = Path(__file__).parents[2] / "fixtures" / "shapes.txt"
ANSWERS = ["Lima", "N'Djamena", "Suva", "Muscat", "Lomé"]
MAPPED = {"prompt": "question", "answer": "reply"}

READ = {
    "openai.jsonl": ("messages", {}),
    "sharegpt.json": ("llava", {"turns": "all"}),
    "alpaca.json": ("alpaca", {}),
    "prompt_completion.jsonl": ("prompt_completion", {}),
    "trl_conversational.jsonl": ("prompt_completion", {}),
    "preference.jsonl": ("preference", {}),
    "squad.jsonl": (
        "prompt_completion",
        {"map": {"prompt": "question", "answers": "answers.text"}},
    ),
    "faq.csv": ("prompt_completion", {"map": MAPPED}),
    "excel.csv": ("prompt_completion", {}),
    "forum.tsv": ("prompt_completion", {}),
    "superni.json": ("superni", {}),
    "trace/train.json": ("prompt_completion", {"test": "trace/test.json"}),
}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    """The files of shapes.txt; Excel's begins with a byte order mark and has CRLF."""
    folder = tmp_path_factory.mktemp("shapes")
    for part in SHAPES.read_text(encoding="utf-8").removeprefix("==> ").split("\n==> "):
        name, _, text = part.partition(" <==\n")
        (folder / name).parent.mkdir(exist_ok=True)
        text = text.removesuffix("\n") + "\n"
        if name == "excel.csv":
            (folder / name).write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
        else:
            (folder / name).write_bytes(text.encode())
    return folder


@pytest.mark.parametrize("name", READ)
def test_a_shape_is_checked_read_and_learnable(shapes, name):
    if name.endswith(("csv", "tsv")):
        pytest.importorskip("datasets")
    format, options = READ[name]
    looked_at = {{"map": "columns"}.get(key, key): value for key, value in options.items()}
    if "test" in options:
        options = {"test": shapes / looked_at.pop("test")}
    report = check(shapes / name, **looked_at)
    assert report.ok, report.bad
    assert report.format == format
    assert (report.note is not None) == (format == "preference")
    task = load_task(TaskConfig(name="capitals", train=shapes / name, **options))
    chat = ChatFormat(shaped("chatml"), max_prompt_tokens=500)
    found = []
    for sample in (*task.train, *task.test):
        example = chat.encode_example(sample)
        text = chat.tokenizer.decode(example.answer_ids)
        assert text == f"{sample.answers[0]}<|im_end|>"
        found.append(sample.answers[0])
    wanted = [answer for answer in ANSWERS if name[:5] != "trace" or answer != "Muscat"]
    assert sorted(set(found) - {"Yes."}) == sorted(wanted)
    assert found.count("Yes.") == (5 if name == "sharegpt.json" else 0)


def test_the_use_of_tools_is_refused_with_every_record(shapes):
    report = check(shapes / "openai_tools.jsonl")
    assert (report.samples, len(report.bad)) == (0, 5)
    assert "lcia does not train the use of tools. Leave the record out." in report.bad[0]
