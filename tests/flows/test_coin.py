"""The CoIN recipe, unchanged, on a generated folder of CoIN's shape with a tiny LLaVA."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image as PILImage

from lcia.experiments.results import read_result
from tiny_visual import llava, save

RECIPES = Path(__file__).parents[2] / "recipes" / "coin"
RECIPE = RECIPES / "llava-1.5-7b.yaml"
ONE_WORD = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
BOX = "Please provide the bounding box coordinate of the region this sentence describes"
TESTS = {"TextVQA": "val", "VizWiz": "val", "VQAv2": "val"}
TASKS = {
    "ScienceQA": ("Which is alive?\nA. stone\nB. fern\n" + LETTER, "B"),
    "TextVQA": ("what does the sign say?\n" + ONE_WORD, "stop"),
    "ImageNet": ("What is the object in the image?\n" + ONE_WORD, "Tabby cat"),
    "GQA": ("Is the door open?\n" + ONE_WORD, "no"),
    "VizWiz": ("what colour is it?\n" + ONE_WORD, "unanswerable"),
    "Grounding": (f"{BOX}: the dog on the left.", "[0.10, 0.20, 0.50, 0.60]"),
    "VQAv2": ("How many cats are there?\n" + ONE_WORD, "2"),
    "OCRVQA": ("Who wrote this book?\n" + ONE_WORD, "Jane Doe"),
}


@pytest.fixture
def coin(tmp_path, monkeypatch) -> Path:
    """Eight tasks of 6 and 4 samples; one of ScienceQA's questions has no image."""
    monkeypatch.setenv("COIN", str(tmp_path))
    monkeypatch.setenv("COIN_INSTRUCTIONS", "Instruction_Type1")
    for task, (text, answer) in TASKS.items():
        folder = tmp_path / "Instruction_Type1" / task
        folder.mkdir(parents=True)
        (tmp_path / "cl_dataset" / task).mkdir(parents=True)
        for i in range(10):
            size = (40 + 3 * i, 60 - 2 * i)
            PILImage.new("RGB", size, (20 * i, 80, 200)).save(
                tmp_path / "cl_dataset" / task / f"{i}.jpg"
            )

        def image(i: int, task: str = task) -> dict[str, str]:
            without = task == "ScienceQA" and i % 5 == 0
            return {} if without else {"image": f"./{task}/{i}.jpg"}

        train = [
            {
                "id": str(i),
                **image(i),
                "conversations": [
                    {"from": "human", "value": ("<image>\n" if image(i) else "") + text},
                    {"from": "gpt", "value": answer},
                ],
            }
            for i in range(6)
        ]
        key = "answer_bbox" if task == "Grounding" else "answer"
        test = [
            {"question_id": i, **image(i), "text": text, key: answer, "category": "default"}
            for i in range(6, 10)
        ]
        (folder / "train.json").write_text(json.dumps(train))
        (folder / f"{TESTS.get(task, 'test')}.json").write_text(json.dumps(test))
    return tmp_path


def small(coin: Path) -> list[str]:
    """Settings that make the recipe run in seconds; what it says about the tasks stays."""
    model = save(llava, coin / "model")
    settings = {
        "model": model,
        "output": coin / "runs",
        "dtype": "float32",
        "adapter.r": 2,
        "methods": "[lcia]",
        "orders": f"{{original: [{', '.join(TASKS)}]}}",
        "training.dataloader_num_workers": 0,
    }
    return [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]


def test_the_recipe_runs_on_a_folder_of_this_shape(coin, lcia):
    done = lcia("run", RECIPE, *small(coin), "--json")
    assert done.returncode == 0, done.stderr
    result = read_result(coin / "runs" / "lcia-seed0-original")
    version = result.store.current
    matrix = version.matrix()
    assert matrix.tasks == tuple(TASKS)
    assert all(matrix[8, i] is not None for i in range(1, 9))
    # The six tasks of one word share a group, the letter and the box have their own.
    assert {g.id: [t.name for t in g.tasks] for g in version.codebook().groups} == {
        "g1": ["ScienceQA"],
        "g2": ["TextVQA", "ImageNet", "GQA", "VizWiz", "VQAv2", "OCRVQA"],
        "g3": ["Grounding"],
    }
    page = (coin / "runs" / "report.html").read_text()
    assert page.count('<img src="data:image/png;base64,') == page.count("<img ") > 8


def test_a_dry_run_needs_no_weights_and_writes_nothing(coin, lcia):
    settings = small(coin)
    (coin / "model" / "model.safetensors").unlink()
    done = lcia("run", RECIPE, *settings, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert [task["task"] for task in plan["tasks"]] == list(TASKS)
    assert {task["task"]: task["scorer"] for task in plan["tasks"]}["Grounding"] == "box_iou"
    assert [run["run"] for run in plan["runs"]] == ["lcia-seed0-original"]
    assert not (coin / "runs").exists()


def test_a_dry_run_lists_every_bad_image(coin, lcia):
    settings = small(coin)
    (coin / "cl_dataset" / "GQA" / "1.jpg").unlink()
    (coin / "cl_dataset" / "VQAv2" / "7.jpg").write_bytes(b"no image")
    done = lcia("run", RECIPE, *settings, "--dry-run")
    assert done.returncode == 2
    assert "2 of 78 images cannot be used" in done.stderr
    assert "GQA/1.jpg: no such file (task 'GQA', sample 1)" in done.stderr
    assert "VQAv2/7.jpg: is no image of a kind that lcia reads" in done.stderr


def test_a_text_model_is_refused(coin, fails, tiny_model):
    settings = [part for part in small(coin) if "model=" not in part]
    settings = settings[1:]
    line = fails("run", RECIPE, *settings, "--set", f"model={tiny_model}", "--dry-run")
    assert "reads text only, and the tasks have images" in line


def test_all_orders_and_kinds_of_instructions_are_one_recipe(coin, lcia, monkeypatch):
    (coin / "Instruction_Type1").rename(coin / "Instruction_Type2")
    monkeypatch.setenv("COIN_INSTRUCTIONS", "Instruction_Type2")
    model = save(llava, coin / "model")
    options = ["--set", f"model={model}", "--set", "grouping.threshold=0.3"]
    done = lcia("run", RECIPE, *options, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    runs = [run["run"] for run in json.loads(done.stdout)["runs"]]
    assert runs == [
        f"{method}-seed0-{order}"
        for method in ("sequential", "lcia_paper", "lcia_release", "lcia")
        for order in ("original", "reverse", "alphabetical")
    ]


def test_ten_answers_are_put_into_the_test_file(coin):
    questions = coin / "Instruction_Type1" / "TextVQA" / "val.json"
    data = [{"question_id": i, "answers": [f"a{i}"] * 9 + ["b"]} for i in range(6, 10)]
    annotations = coin / "annotations.json"
    annotations.write_text(json.dumps({"data": data}))
    command = [sys.executable, str(RECIPES / "ten_answers.py"), str(annotations), str(questions)]
    subprocess.run(command, check=True)
    assert json.loads(questions.read_text())[0]["answer"] == ["a6"] * 9 + ["b"]
    annotations.write_text(json.dumps({"data": data[1:]}))
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "has no answers for 1 questions, first 6" in done.stderr
