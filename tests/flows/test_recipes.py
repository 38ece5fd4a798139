"""The recipes of others' benchmarks, unchanged, on small folders written here in their shapes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image as PILImage

from lcia.config.stream import load_stream_config
from lcia.data import TaskConfig, load_task, read
from lcia.errors import ConfigError, DataError
from lcia.experiments.results import read_result
from lcia.learner import Store
from tiny_visual import llava, save

RECIPES = Path(__file__).parents[2] / "recipes" / "benchmarks"
LABELLED = {
    "TC/agnews": ["World", "Sports"],
    "TC/dbpedia": ["Company", "Village"],
    "TC/yahoo": ["Health", "Science"],
    "SC/amazon": ["negative", "positive"],
    "SC/yelp": ["negative", "positive"],
    "SC/IMDB": ["Bad", "Good"],
    "SC/SST-2": ["Bad", "Good"],
    "NLI/MNLI": ["neutral", "entailment"],
    "NLI/CB": ["neutral", "entailment"],
    "NLI/RTE": ["contradiction", "entailment"],
    "QQP/QQP": ["False", "True"],
    "BoolQA/BoolQA": ["False", "True"],
    "MultiRC/MultiRC": ["False", "True"],
    "WiC/WiC": ["False", "True"],
    "COPA/COPA": ["A", "B"],
}
VARIABLES = {
    "standard": "CL_BENCHMARK",
    "long": "CL_BENCHMARK",
    "superni15": "SAPT_BENCHMARK",
    "trace": "TRACE",
}


def write(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


@pytest.fixture
def labelled(tmp_path) -> Path:
    """O-LoRA's shape: six sentences to train, three to test, other ones in dev.json."""
    for name, labels in LABELLED.items():
        write(tmp_path / name / "labels.json", labels)
        for split, sizes in {"train": (0, 6), "dev": (6, 8), "test": (8, 11)}.items():
            records = [{"label": labels[i % 2], "sentence": f"text {i}"} for i in range(*sizes)]
            write(tmp_path / name / f"{split}.json", records)
    return tmp_path


@pytest.fixture
def folders(request, tmp_path) -> Path:
    """The shape that a recipe reads."""
    if VARIABLES[request.param] == "CL_BENCHMARK":
        request.getfixturevalue("labelled")
    for task in load_stream_config(RECIPES / f"{request.param}.yaml").tasks:
        folder = tmp_path / task.train.name
        if request.param == "superni15":
            instances = [{"input": f"input {i}", "output": f"out {i}"} for i in range(5)]
            tree = {"Definition": [f"Do {task.name}."], "Positive Examples": []}
            write(folder / "train.json", {**tree, "Instances": instances})
            write(folder / "dev.json", {**tree, "Instances": instances})
            write(folder / "test.json", {**tree, "Instances": instances[:2]})
        elif request.param == "trace":
            prompts = [{"prompt": f"{task.name}?\n{i}", "answer": "yes"} for i in range(7)]
            write(folder / "train.json", prompts[:4])
            write(folder / "eval.json", prompts[4:5])
            write(folder / "test.json", prompts[5:])
    return tmp_path


@pytest.mark.parametrize(
    ("folders", "name", "tasks", "sizes", "orders"),
    [
        ("standard", "standard", 4, (6, 3), 3),
        ("long", "long", 15, (6, 3), 3),
        ("superni15", "superni15", 15, (5, 2), 2),
        ("trace", "trace", 8, (4, 2), 0),
    ],
    indirect=["folders"],
)
def test_each_recipe_reads_its_benchmark(folders, name, tasks, sizes, orders, monkeypatch):
    monkeypatch.setenv(VARIABLES[name], str(folders))
    config = load_stream_config(RECIPES / f"{name}.yaml")
    found = config.read_tasks(base=RECIPES)
    assert len(found) == tasks
    assert {(len(task.train), len(task.test)) for task in found} == {sizes}
    assert len(config.orders) == orders
    for order in config.orders.values():
        assert sorted(order) == sorted(task.name for task in found)
    for task in found:
        assert {s.prompt for s in task.train}.isdisjoint(s.prompt for s in task.test) or (
            name == "superni15"
        )


def test_a_labelled_sentence_becomes_the_benchmark_s_prompt(labelled):
    (sample, *_) = read(labelled / "TC/agnews/train.json")
    instruction = (
        "What is the topic of the following paragraph? Choose one from the option.\n"
        "Option: World, Sports"
    )
    assert sample.prompt == f"{instruction} \ntext 0\nAnswer:"
    assert (sample.answers, sample.instruction) == (("World",), instruction)
    (own, *_) = read(labelled / "COPA/COPA/train.json")
    assert own.prompt == "Option: A, B \ntext 0\nAnswer:", "COPA's sentences ask themselves"
    task = load_task(TaskConfig(name="agnews", train=labelled / "TC/agnews"))
    assert (task.instruction, task.scorer) == ("field", "exact_match")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("TC/agnews/labels.json", None), "with labels.json beside it .* --map prompt=sentence"),
        (("TC/agnews/labels.json", []), r"labels\.json: is an empty list; expected a list of text"),
        (("TC/agnews/labels.json", {"a": 1}), r"labels\.json: is an object; expected a list"),
        (("TC/agnews/labels.json", ["World"]), r"label is 'Sports'; expected one of .*: World\."),
        (("Other/set/train.json", [{"sentence": "a", "label": "b"}]), "one of NLI, QQP, SC, TC"),
    ],
)
def test_what_is_missing_or_wrong_beside_a_file_is_said(labelled, change, message):
    name, value = change
    if value is None:
        (labelled / name).unlink()
    else:
        write(labelled / name, value)
    path = labelled / ("Other/set" if "Other" in name else "TC/agnews") / "train.json"
    with pytest.raises(DataError, match=message):
        read(path)


def test_other_sentences_and_labels_are_mapped_as_the_message_says(labelled):
    write(labelled / "mine.json", [{"sentence": "Good?", "label": 1}])
    (sample,) = read(labelled / "mine.json", columns={"prompt": "sentence", "answer": "label"})
    assert (sample.prompt, sample.answers) == ("Good?", ("1",))


def test_a_folder_whose_files_are_named_or_that_lacks_one_is_read_as_before(labelled):
    folder = labelled / "TC/agnews"
    entry = TaskConfig(name="x", train=folder / "dev.json", test=folder / "train.json")
    assert (len(load_task(entry).train), len(load_task(entry).test)) == (2, 6)
    (folder / "test.json").unlink()
    with pytest.raises(ConfigError, match="has the splits train, validation"):
        load_task(TaskConfig(name="x", train=folder))


def test_a_recipe_runs_and_a_folder_is_learned(labelled, lcia, tiny_model, monkeypatch, tmp_path):
    monkeypatch.setenv("CL_BENCHMARK", str(labelled))
    settings = {
        "model": tiny_model,
        "output": tmp_path / "runs",
        "dtype": "float32",
        "adapter.target_modules": "[q_proj, v_proj]",
        "methods": "[lcia]",
        "orders": "{order3: [yahoo, amazon, agnews, dbpedia]}",
        "seeds": "[0]",
    }
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    done = lcia("run", RECIPES / "standard.yaml", *options, "--json")
    assert done.returncode == 0, done.stderr
    result = read_result(tmp_path / "runs" / "lcia-seed0-order3")
    assert result.metrics["average_accuracy"] is not None
    store = tmp_path / "assistant"
    done = lcia("learn", store, labelled / "SC/yelp", "--name", "yelp", "--model", tiny_model)
    assert done.returncode == 0, done.stderr
    (task,) = Store.open(store).current.tasks()
    assert (task.name, len(task.test)) == ("yelp", 3)


COIN = Path(__file__).parents[2] / "recipes" / "coin"
RECIPE = COIN / "llava-1.5-7b.yaml"
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
    command = [sys.executable, str(COIN / "ten_answers.py"), str(annotations), str(questions)]
    subprocess.run(command, check=True)
    assert json.loads(questions.read_text())[0]["answer"] == ["a6"] * 9 + ["b"]
    annotations.write_text(json.dumps({"data": data[1:]}))
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "has no answers for 1 questions, first 6" in done.stderr
