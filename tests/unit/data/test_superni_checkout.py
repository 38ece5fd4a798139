"""A checkout of Super-NaturalInstructions: a miniature one, made here."""

import json

import pytest

from lcia.data import SuperNIConfig, load_tasks
from lcia.errors import ConfigError, DataError

TASKS = {
    "task2_capital_generation": ("Question Answering", lambda i: [f"town {i}", f"city {i}"]),
    "task10_mood_classification": ("Sentiment Analysis", lambda i: [("good", "bad")[i % 2]]),
    "task11_topic_classification": ("Text Categorization", lambda i: [("a", "b", "c")[i % 3]]),
}


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "tasks").mkdir()
    for name, (category, outputs) in TASKS.items():
        tree = {
            "Categories": [category],
            "Definition": [f"Definition of {name}."],
            "Instances": [
                {"id": f"{name}-{i}", "input": f"input {i}", "output": outputs(i)}
                for i in range(700)
            ],
        }
        (tmp_path / "tasks" / f"{name}.json").write_text(json.dumps(tree))
    (tmp_path / "tasks" / "README.md").write_text("not a task")
    (tmp_path / "splits" / "default").mkdir(parents=True)
    listed = "task10_mood_classification\ntask11_topic_classification\ntask999_gone\n"
    (tmp_path / "splits" / "default" / "train_tasks.txt").write_text(listed)
    return tmp_path


def names(checkout, **settings):
    return [entry.name for entry in SuperNIConfig(root=checkout, **settings).entries()]


def test_all_tasks_come_by_number_in_citbs_protocol(checkout):
    tasks = load_tasks(SuperNIConfig(root=checkout).entries())
    assert [task.name for task in tasks] == list(TASKS)
    assert {(len(task.train), len(task.test)) for task in tasks} == {(500, 100)}
    assert [task.scorer for task in tasks] == ["rougeL", "exact_match", "exact_match"]
    for task in tasks:
        assert not {s.prompt for s in task.train} & {s.prompt for s in task.test}
        assert task.train[0].instruction == f"Definition of {task.name}."


def test_a_folder_of_task_files_is_a_checkout_too(checkout):
    assert names(checkout / "tasks") == list(TASKS)


def test_tasks_are_named_in_full_or_by_number_in_their_order(checkout):
    chosen = ["task11", "task2_capital_generation.json"]
    assert names(checkout, tasks=chosen) == [
        "task11_topic_classification",
        "task2_capital_generation",
    ]


def test_split_categories_and_count_narrow_down(checkout):
    both = ["task10_mood_classification", "task11_topic_classification"]
    assert names(checkout, split="default/train_tasks") == both
    assert names(checkout, split="default/train_tasks.txt", categories=["Text Categorization"]) == [
        "task11_topic_classification"
    ]
    drawn = [tuple(names(checkout, max_tasks=2, seed=seed)) for seed in range(20)]
    assert drawn == [tuple(names(checkout, max_tasks=2, seed=seed)) for seed in range(20)]
    assert {len(chosen) for chosen in drawn} == {2}
    assert len(set(drawn)) == 3
    assert all(list(chosen) == [name for name in TASKS if name in chosen] for chosen in drawn)


def test_fewer_samples_on_request(checkout):
    config = SuperNIConfig(root=checkout, tasks=["task2"], max_train=30, max_test=7)
    (task,) = load_tasks(config.entries())
    assert (len(task.train), len(task.test), task.max_new_tokens) == (30, 7, 128)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"tasks": ["task10_mood_clasification"]}, "Nearest: task10_mood_classification"),
        ({"split": "default/train"}, "train.txt is not there. Nearest: default/train_tasks"),
        ({"categories": ["Sentiment"]}, "Nearest: Sentiment Analysis"),
        ({"tasks": ["task2"], "split": "default/train_tasks"}, "no task of .* is left"),
    ],
)
def test_what_is_not_there_is_named_with_the_nearest(checkout, settings, expected):
    with pytest.raises(ConfigError, match=expected):
        names(checkout, **settings)


def test_a_folder_without_tasks_or_a_broken_task_is_one_line(checkout, tmp_path):
    with pytest.raises(DataError, match=r"holds no task\*\.json\. Expected a checkout"):
        names(tmp_path / "splits")
    (checkout / "tasks" / "task3_x.json").write_text("[")
    with pytest.raises(DataError, match=r"task3_x\.json: is not a Super-NaturalInstructions task"):
        names(checkout, categories=["Sentiment Analysis"])


def test_a_relative_root_starts_at_the_base(checkout):
    config = SuperNIConfig(root=checkout.name, tasks=["task2"])
    (entry,) = config.entries(base=checkout.parent)
    assert entry.superni == checkout / "tasks" / "task2_capital_generation.json"
