"""Files of every kind: encodings, broken records, tables, folders, and that no record gets lost."""

import builtins
import gzip
import json

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcia.data import TaskConfig, check, load_task, read, read_all
from lcia.data.tables import is_hub_id
from lcia.errors import ConfigError, DataError, MissingDependencyError


def record(prompt="Say hello.", **more):
    return {"prompt": prompt, "completion": "Hello!", **more}


def dump(*records):
    return "".join(json.dumps(value) + "\n" for value in records).encode()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data.jsonl"


def message(path, content, **options):
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(path, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        dump(record("a"), record("b")),
        dump(record("a"), record("b")).replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + dump(record("a"), record("b")),
        b"\n\n" + dump(record("a")) + b"\n  \n" + dump(record("b")) + b"\n",
        dump(record("a"), record("b")).rstrip(b"\n"),
        json.dumps([record("a"), record("b")]).encode(),
        json.dumps([record("a"), record("b")], indent=2).encode(),
        b"[\n" + json.dumps(record("a")).encode() + b",\n" + dump(record("b")) + b"]\n",
    ],
    ids=["plain", "crlf", "bom", "blank_lines", "no_newline", "list", "pretty", "list_of_lines"],
)
def test_harmless_differences_are_read(path, content):
    path.write_bytes(content)
    assert [sample.prompt for sample in read(path)] == ["a", "b"]


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=5))
def test_every_text_survives_and_none_is_dropped(tmp_path_factory, prompts):
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    lines = [json.dumps(record(prompt), ensure_ascii=False) for prompt in prompts]
    path.write_bytes("\n".join(lines).encode())
    assert [sample.prompt for sample in read(path)] == prompts


def test_line_separators_inside_a_text_do_not_end_a_line(path):
    path.write_bytes(json.dumps(record("a\u2028b\x85c"), ensure_ascii=False).encode() + b"\n")
    assert read(path)[0].prompt == "a\u2028b\x85c"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", ": is empty; expected at least one record."),
        (b"\n \n", ": is empty; expected at least one record."),
        (b"\xef\xbb\xbf", ": is empty; expected at least one record."),
        (
            dump(record()).decode().encode("utf-16")[:-1],
            ":1: byte 99 of the file is not UTF-16, as its mark says: truncated data. Save the",
        ),
        (
            dump(record("a")) + b'{"prompt": "\xe9", "completion": "x"}\n',
            ":2: byte 13 is not UTF-8; expected UTF-8. Save the file as UTF-8.",
        ),
        (
            dump(record("a"), record("b")) + b'{"prompt": "c" "x"}\n',
            ":3: not valid JSON: Expecting ',' delimiter at column 16.",
        ),
        (b'{"prompt": "c\n' + dump(record("a")), ":1: not valid JSON: Unterminated string"),
        (b'{"prompt": "c', ":1: not valid JSON: Unterminated string"),
        (b"[\n" + dump(record("a")) + b"\n", ":4: not valid JSON: Expecting ',' delimiter"),
        (b"{\n" + b'"Definition": "x",\n "Instances": [\n', ":4: not valid JSON: Expecting value"),
        (dump(record("a")) + b"[1]\n", ":2: found a list; expected {"),
        (dump(record("a")) + b"17\n", ":2: found 17; expected {"),
        (b"[" * 100_000, ":1: lists and objects stand in each other too deeply"),
        (b'{"id": ' + b"9" * 6000 + b"}", ":1: a number has over 4300 digits; write it as a text."),
        (dump(record("a")) + b"\0" * 4096, ": is filled with NUL bytes from line 2 on, as a crash"),
        (
            gzip.compress(gzip.compress(dump(record("a")), mtime=0), mtime=0),
            ": is packed twice. Unpack it once.",
        ),
        (b"null", ": found no JSON object, which fits no format; expected one of messages: {"),
        (b"[]", ": has no records; expected at least one."),
        (dump({"text": "a"}), ": found records with the keys text, which fits no format; expected"),
        (
            dump({f"k{i:02}": i for i in range(30)}),
            ": found records with the keys k00, k01, k02, k03, k04, k05, k06, k07 and 22 more, ",
        ),
        (
            dump(record("a", id="x"), record("b", id="x")),
            ":2: id 'x' is also that of 1; expected another.",
        ),
    ],
)
def test_what_is_wrong_is_one_line_with_its_place(path, content, expected):
    text = message(path, content)
    assert text.startswith(f"{path}{expected}")
    assert "\n" not in text


def test_numbers_given_to_records_without_an_id_take_no_other_records_id(path):
    path.write_bytes(dump(record("a"), record("b", id="1"), record("c", id=4), record("d")))
    assert [sample.id for sample in read(path)] == ["1@1", "1", "4", "4@4"]


def test_a_web_address_is_called_one():
    for address in ("https://example.org/a.jsonl", "http://example.org/a.jsonl"):
        with pytest.raises(DataError, match=f"^{address}: is a web address; expected a file"):
            read(address)


def test_line_17_of_many_is_named(path):
    lines = dump(*(record(str(i)) for i in range(40))).splitlines(keepends=True)
    lines[16] = b'{"prompt": "16", "completion": \n'
    assert message(path, b"".join(lines)).startswith(f"{path}:17: not valid JSON: Expecting value")


def test_all_bad_records_are_counted_and_twenty_shown(path):
    bad = [{"prompt": str(i)} for i in range(30)]
    lines = message(path, dump(record("good"), *bad)).splitlines()
    assert lines[0] == f"{path}: 30 of 31 records cannot be used; the first 20:"
    assert lines[1:] == [
        f"{path}:{line}: completion is missing or null; expected a text." for line in range(2, 22)
    ]
    two = message(path, dump(record("good"), *bad[:2])).splitlines()
    assert two[0] == f"{path}: 2 of 3 records cannot be used; all:"
    assert len(two) == 3


def test_the_majority_decides_the_format(path):
    path.write_bytes(dump({"instruction": "a", "output": "b"}, record("a"), record("b")))
    reading = read_all(path)
    assert reading.format == "prompt_completion"
    assert reading.messages() == [f"{path}:1: prompt is missing or null; expected a text."]


@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_every_record_is_either_a_sample_or_a_problem(tmp_path_factory, good):
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    path.write_bytes(dump(*(record(str(i)) if g else {"prompt": i} for i, g in enumerate(good))))
    reading = read_all(path, format="prompt_completion")
    assert [sample.id for sample in reading.samples] == [
        str(i) for i, g in enumerate(good, start=1) if g
    ]
    assert [problem.where for problem in reading.problems] == [
        f":{i}" for i, g in enumerate(good, start=1) if not g
    ]


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.jsonl: no such file\."):
        read(tmp_path / "nothing.jsonl")
    with pytest.raises(DataError, match="is a folder without data files; expected a file"):
        read(tmp_path)


def test_wrong_options(path):
    path.write_bytes(dump(record()))
    with pytest.raises(ConfigError, match=r"'alpacca' is not one of the readers.*Nearest: alpaca"):
        read(path, format="alpacca")
    with pytest.raises(ConfigError, match="'bot' is mapped to 'robot'; expected"):
        read(path, roles={"bot": "robot"})


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
