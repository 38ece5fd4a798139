"""CSV, TSV, Parquet, Arrow, folders and hub ids become the records that readers take."""

import builtins
import json

import pytest

from lcia.data import TaskConfig, check, load_task, read, read_all
from lcia.data.tables import is_hub_id
from lcia.errors import ConfigError, DataError, MissingDependencyError

datasets = pytest.importorskip("datasets")

ROWS = [{"prompt": f"Word {i}?", "completion": f"answer {i}"} for i in range(12)]


def refusal(path, content, **options):
    path.write_bytes(content)
    with pytest.raises((DataError, ConfigError)) as caught:
        read(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["csv", "tsv", "semicolon", "parquet", "arrow", "json"])
def test_every_kind_of_file_holds_the_same_samples(tmp_path, kind):
    data = datasets.Dataset.from_list(ROWS)
    path = tmp_path / f"data[1]*.{'csv' if kind == 'semicolon' else kind}"  # no pattern
    if kind == "parquet":
        data.to_parquet(path)
    elif kind == "arrow":
        with datasets.arrow_writer.ArrowWriter(path=str(path)) as writer:
            writer.write_table(data.data.table)
    elif kind == "json":
        path.write_text(json.dumps(ROWS))
    else:
        data.to_csv(path, sep={"csv": ",", "tsv": "\t", "semicolon": ";"}[kind])
    samples = read(path)
    assert [(s.prompt, s.answers) for s in samples] == [
        (row["prompt"], (row["completion"],)) for row in ROWS
    ]


def test_a_table_without_rows_has_no_records(tmp_path):
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "data.parquet"
    parquet.write_table(pyarrow.table({"prompt": [], "completion": []}), path)
    with pytest.raises(DataError, match=r"data\.parquet: has no records; expected at least one"):
        read(path)


def test_cells_are_the_texts_that_stand_there(tmp_path):
    cells = ["007", "NA", "null", "1.50", "True", '"a\nb"', '"say ""x"", then y"', " x ", "1e5"]
    path = tmp_path / "data.csv"
    path.write_text("prompt,completion\n" + "".join(f"q{i},{c}\n" for i, c in enumerate(cells)))
    plain = ["007", "NA", "null", "1.50", "True", "a\nb", 'say "x", then y', " x ", "1e5"]
    assert [sample.answers[0] for sample in read(path)] == plain


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"prompt,completion\na,b,c\nd,e,f\n", "cannot be read as CSV: Length of header"),
        (b"prompt,completion\na,b\nd,e,f\n", "Expected 2 fields in line 3, saw 3"),
        (b'prompt,completion\n"a,b\n', "EOF inside string"),
        (
            b"prompt,completion,prompt\na,b,c\n",
            ":1: the column 'prompt' stands twice in the header",
        ),
        (b"prompt,completion\n", ": has no records; expected at least one."),
        (b"prompt,completion\na\n", ": row 1: completion is empty; expected a text."),
        (b"prompt,completion\na,\xe9\n", ":2: byte 3 is not UTF-8; expected UTF-8."),
        (b"prompt,completion,weight\na,b,1\nc,d,0\n", ": row 2: weight is '0', so this is not"),
        (b"prompt,completion,weight\na,b,0.5\n", "expected 0 or 1: lcia weighs no samples"),
        (b"prompt,completion,label\na,b,False\n", "label is 'False', so this is not to be"),
        (b"prompt,completion,context\na,b,c\n", "context is 'c'; this format has no place"),
        (b"question,reply\na,b\n", "Name the columns with --map"),
    ],
)
def test_what_is_wrong_with_a_table_is_one_line(tmp_path, content, said):
    assert said in refusal(tmp_path / "data.csv", content)


def test_a_table_named_json_and_a_damaged_table_are_refused(tmp_path):
    table = b"prompt,completion\na,b\n"
    assert "Rename it to .csv" in refusal(tmp_path / "data.jsonl", table)
    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "good.parquet")
    content = (tmp_path / "good.parquet").read_bytes()
    assert "cannot be read as Parquet" in refusal(tmp_path / "x.parquet", content[:-9])
    assert "cannot be read as Arrow" in refusal(tmp_path / "x.arrow", b"ARROW1\x00\x00rest")


def test_columns_are_mapped_left_out_and_counted(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("question,reply,context,prompt,extra\nq,r,c,old,e\n")
    columns = {"prompt": "question", "answer": "reply", "context": None}
    reading = read_all(path, columns=columns)
    assert [(s.prompt, s.answers) for s in reading.samples] == [("q", ("r",))]
    assert reading.unread == {"extra": 1, "prompt (displaced by map)": 1}


def test_columns_may_lie_inside_others_and_hold_numbers(tmp_path):
    path = tmp_path / "squad.jsonl"
    path.write_text(json.dumps({"question": "q", "answers": {"text": ["a", "b"], "start": [1, 2]}}))
    samples = read(path, columns={"prompt": "question", "answers": "answers.text"})
    assert samples[0].answers == ("a", "b")
    path.write_text(json.dumps({"question": "6 * 7?", "result": 42}))
    assert read(path, columns={"prompt": "question", "answer": "result"})[0].answers == ("42",)


def test_wrong_columns_are_refused_with_the_nearest(tmp_path):
    table = b"question,reply\na,b\n"
    said = refusal(tmp_path / "data.csv", table, columns={"prompt": "qestion", "answer": "reply"})
    assert "no record has 'qestion'. Nearest: question" in said
    said = refusal(tmp_path / "data.csv", table, columns={"promt": "question"})
    assert "no format has a field 'promt'. Nearest: prompt" in said


def test_class_labels_are_read_by_name(tmp_path):
    labels = datasets.ClassLabel(names=["sport", "business"])
    data = datasets.Dataset.from_dict({"text": ["goal", "shares"], "topic": [0, 1]})
    data.cast_column("topic", labels).save_to_disk(tmp_path / "news")
    samples = read(tmp_path / "news", columns={"prompt": "text", "answer": "topic"})
    assert [sample.answers for sample in samples] == [("sport",), ("business",)]


def test_a_folder_has_splits(tmp_path):
    for name, rows in {"train": ROWS[:10], "test": ROWS[10:]}.items():
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(ConfigError, match=r"has the splits train, test\. Choose with --split"):
        read(tmp_path)
    with pytest.raises(ConfigError, match="has no split 'dev'; expected train, test"):
        read(tmp_path, split="dev")
    assert len(read(tmp_path, split="train")) == 10
    entry = TaskConfig(name="words", train=tmp_path, split="train", test_split="test")
    task = load_task(entry)
    assert (len(task.train), len(task.test)) == (10, 2)


def test_a_file_has_no_split(tmp_path):
    said = refusal(tmp_path / "a.jsonl", json.dumps(ROWS[0]).encode(), split="train")
    assert "is one file and has no split 'train'" in said


def test_hub_ids_are_told_from_mistyped_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    known = ["user/name", "user/name:main", "User-1/a.b_c"]
    others = ["data/tickets", "user/name.jsonl", "user/a.csv", "a/b/c", "name", "/user/name"]
    assert [name for name in known + others if is_hub_id(tmp_path.__class__(name))] == known


def test_a_hub_that_does_not_answer_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"^nobody/nothing: is no file here, and the hub [^\n]*$"):
        read("nobody/nothing", split="train")


def test_without_the_library_the_install_line_is_told(tmp_path, monkeypatch):
    real = builtins.__import__

    def absent(name, *args, **options):
        if name in ("datasets", "zstandard"):
            raise ModuleNotFoundError(name)
        return real(name, *args, **options)

    packed = pytest.importorskip("zstandard").compress(b"{}")
    monkeypatch.setattr(builtins, "__import__", absent)
    for name, content in {"a.csv": b"prompt,completion\na,b\n", "a.jsonl.zst": packed}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MissingDependencyError, match=r"pip install 'lcia\[data\]'"):
            read(tmp_path / name)


def test_preferences_teach_the_chosen_answer_and_say_so(tmp_path, caplog):
    turns = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]
    bad = [turns[0], {"role": "assistant", "content": "Go."}]
    for record in (
        {"prompt": "Hi?", "chosen": "Hello.", "rejected": "Go."},
        {"prompt": "Hi?", "chosen": turns, "rejected": bad, "messages": turns},
        {"chosen": turns, "rejected": bad},
        {"prompt": turns[:1], "chosen": turns[1:], "rejected": bad[1:]},
    ):
        path = tmp_path / "pairs.jsonl"
        path.write_text(json.dumps(record))
        caplog.clear()
        samples = read(path)
        assert [(s.prompt, s.answers, len(s.messages)) for s in samples] == [
            ("Hi?", ("Hello.",), 1)
        ]
        assert "the chosen answers are learned" in caplog.text
        assert "the chosen answers are learned" in check(path).note
    said = refusal(path, json.dumps({"prompt": "No?", "chosen": turns, "rejected": bad}).encode())
    assert "prompt is not in the conversation of chosen" in said
