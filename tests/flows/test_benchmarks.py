"""The recipes of recipes/benchmarks, unchanged, on small folders written here in their shapes."""

import json
from pathlib import Path

import pytest

from lcia.config.stream import load_stream_config
from lcia.data import TaskConfig, load_task, read
from lcia.errors import ConfigError, DataError
from lcia.experiments.results import read_result
from lcia.learner import Store

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
