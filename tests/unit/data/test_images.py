"""Samples with images: read in every form, checked in one go, known by their content."""

import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image as PILImage

from lcia.data import Image, Message, Sample, Task, TaskConfig, check, load_tasks, read
from lcia.data.images import check_images, inspect, open_image
from lcia.errors import DataError


def image_file(path: Path, colour: str = "red", size=(40, 30), **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PILImage.new("RGB", size, colour).save(path, **options)
    return path


def write(folder: Path, *records) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def problem(folder: Path, record) -> str:
    with pytest.raises(DataError) as caught:
        read(write(folder, record))
    return str(caught.value).removeprefix(f"{folder / 'data.jsonl'}:1: ")


def talk(*values: str, **more):
    said = [
        {"from": speaker, "value": value}
        for speaker, value in zip(("human", "gpt") * 5, values, strict=False)
    ]
    return {"id": "a", "conversations": said, **more}


def test_llava_conversation(tmp_path):
    record = talk("<image>\nWhat is it?\nOne word.", "cat", image="coco/1.jpg")
    image = Image(path=str(tmp_path / "coco" / "1.jpg"))
    asked = Message(role="user", content="What is it?\nOne word.", images=(image,))
    assert read(write(tmp_path, record)) == [Sample(id="a", messages=(asked,), answers=("cat",))]


def test_every_answer_of_a_llava_conversation_is_a_sample(tmp_path):
    record = talk("<image>\nWhat?", "cat", "Colour?", "black", image="1.jpg")
    first, second = read(write(tmp_path, record))
    assert (first.id, first.answers) == ("a-1", ("cat",))
    assert (second.id, second.answers) == ("a-2", ("black",))
    assert [m.content for m in second.messages] == ["What?", "cat", "Colour?"]
    assert [len(m.images) for m in second.messages] == [1, 0, 0]


def test_images_stand_where_their_marks_stand(tmp_path):
    record = talk("First <image>\nor <image>?", "the first", image=["1.png", "2.png"])
    message = read(write(tmp_path, record))[0].messages[0]
    assert message.content == "First or ?"
    assert [(Path(i.path).name, i.at) for i in message.images] == [("1.png", 6), ("2.png", 9)]


def test_a_lone_image_without_a_mark_stands_first(tmp_path):
    message = read(write(tmp_path, talk("What?", "cat", image="1.png")))[0].messages[0]
    assert message == Message(
        role="user", content="What?", images=(Image(path=str(tmp_path / "1.png")),)
    )


def test_a_text_without_an_image_is_left_as_it_is(tmp_path):
    sample = read(write(tmp_path, talk("What?\n", "cat")))[0]
    assert sample.messages == (Message(role="user", content="What?\n"),)
    assert sample.images == ()


def test_llava_test_form_keeps_votes(tmp_path):
    records = [
        {"question_id": 3, "image": "1.png", "text": "What?", "answer": ["cat", "cat", "dog"]},
        {"question_id": 4, "text": "2 + 2?", "answer": "4", "category": "default"},
    ]
    first, second = read(write(tmp_path, *records), images=tmp_path / "images")
    assert (first.id, first.answers) == ("3", ("cat", "cat", "dog"))
    assert first.images == (Image(path=str(tmp_path / "images" / "1.png")),)
    assert (second.id, second.answers, second.images) == ("4", ("4",), ())


def test_messages_with_parts(tmp_path):
    parts = [
        {"type": "text", "text": "Is "},
        {"type": "image", "image": "1.png"},
        {"type": "text", "text": "a cat?"},
    ]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "yes"}]
    sample = read(write(tmp_path, {"messages": turns}))[0]
    assert sample.prompt == "Is a cat?"
    assert sample.images == (Image(path=str(tmp_path / "1.png"), at=3),)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (talk("<image> <image>", "x", image="1.png"), "the text has 2 <image> for 1 images"),
        (talk("<image>", "x"), "the text has 1 <image> for 0 images"),
        (talk("<image>\n", "x", image="1.png"), "text is empty"),
        (talk("What?", image="1.png"), "has no turn from 'gpt'"),
        (talk("What?", "x", image="https://a/1.png"), "expected the path of a file"),
        ({"conversations": []}, "conversations is an empty list"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "type is 'video'"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "missing or null"),
    ],
)
def test_what_is_wrong_with_a_record(tmp_path, record, message):
    assert message in problem(tmp_path, record)


def bomb(path: Path, width: int, height: int) -> Path:
    """A PNG that claims a size and holds next to nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def cut(path: Path) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    return path


def test_every_problem_is_found_in_one_go(tmp_path):
    good = image_file(tmp_path / "good.jpg", size=(400, 300))
    bad = {
        tmp_path / "gone.png": "no such file",
        cut(image_file(tmp_path / "cut.jpg", size=(400, 300))): "is no whole image",
        cut(image_file(tmp_path / "cut.png", size=(400, 300))): "is no whole image",
        bomb(tmp_path / "large.png", 10_000, 10_000): "is 10000 x 10000; expected at most",
        bomb(tmp_path / "bomb.png", 50_000, 50_000): "expected at most 89,478,485",
    }
    (tmp_path / "text.png").write_text("no image")
    bad[tmp_path / "text.png"] = "is no image of a kind that lcia reads"
    sums, problems = inspect(map(str, [good, *bad]))
    assert list(sums) == [str(good)]
    assert set(problems) == {str(path) for path in bad}
    for path, message in bad.items():
        assert message in problems[str(path)]


def about(path: Path, i: int = 0) -> Sample:
    asked = Message(role="user", content="What?", images=(Image(path=str(path)),))
    return Sample(id=str(i), messages=(asked,), answers=("cat",))


def test_a_task_with_bad_images_is_refused_once_and_whole(tmp_path):
    gone = [about(tmp_path / f"{i}.png", i) for i in range(2)]
    tasks = [Task(name=name, train=(*gone, gone[0]), test=(gone[1],)) for name in ("a", "b")]
    with pytest.raises(DataError) as caught:
        check_images(tasks)
    assert str(caught.value).splitlines() == [
        "2 of 2 images cannot be used; all:",
        f"{tmp_path}/0.png: no such file (task 'a', sample 0)",
        f"{tmp_path}/1.png: no such file (task 'a', sample 1)",
    ]


def test_the_fingerprint_knows_the_image_not_its_place(tmp_path):
    paths = [
        image_file(tmp_path / "a" / "x.png"),
        image_file(tmp_path / "b" / "y.png"),
        image_file(tmp_path / "c.png", "blue"),
    ]
    tasks = check_images([Task(name="t", train=(about(p),), test=(about(p),)) for p in paths])
    prints = [task.fingerprint() for task in tasks]
    assert prints[0] == prints[1] != prints[2]
    assert len(tasks[0].train[0].images[0].sha256) == 64


def test_a_task_without_images_passes(tmp_path):
    asked = Sample(id="1", messages=(Message(role="user", content="2+2?"),), answers=("4",))
    task = Task(name="t", train=(asked,), test=(asked,))
    assert check_images([task]) == (task,)
    both = replace(task, train=(asked, about(image_file(tmp_path / "1.png"))))
    assert check_images([both])[0].train[0] == asked


def test_images_are_opened_upright_and_in_colour(tmp_path):
    exif = PILImage.Exif()
    exif[0x0112] = 6  # the camera was turned
    path = image_file(tmp_path / "turned.jpg", size=(40, 30), exif=exif)
    assert open_image(path).size == (30, 40)
    grey = tmp_path / "grey.png"
    PILImage.new("LA", (5, 5)).save(grey)
    assert open_image(grey).mode == "RGB"
    path.unlink()
    with pytest.raises(DataError, match=r"turned\.jpg: cannot be read as an image any more"):
        open_image(path)


def test_check_reports_images_too(tmp_path):
    report = check(write(tmp_path, talk("<image>\nWhat?", "cat", image="1.png")))
    assert report.bad == (f"{tmp_path}/1.png: no such file (sample a).",)
    assert not report.ok
    image_file(tmp_path / "photos" / "1.png")
    assert check(tmp_path / "data.jsonl", images=tmp_path / "photos").ok


def test_images_of_a_stream_lie_in_a_folder_of_their_own(tmp_path):
    image_file(tmp_path / "coco" / "1.jpg")
    data = write(tmp_path, talk("<image>\nWhat?", "cat", image="1.jpg"))
    entry = TaskConfig(name="t", train=data.name, test=data.name, images="coco")
    (image,) = load_tasks([entry], base=tmp_path)[0].train[0].images
    assert image.path == str(tmp_path / "coco" / "1.jpg")
    assert len(image.sha256) == 64
    entries = [entry, TaskConfig(name="u", train=data.name, test=data.name)]
    with pytest.raises(DataError, match=r"1 of 2 images cannot be used"):
        load_tasks(entries, base=tmp_path)


@pytest.mark.parametrize("path", ["/dev/zero", "a\x00b", "\ud800.png"])
def test_a_path_that_names_no_file_is_told_at_once(path):
    good, bad = inspect([path])
    assert not good
    assert bad[path].startswith(("no such file", "cannot be read: it is a pipe or a device"))
