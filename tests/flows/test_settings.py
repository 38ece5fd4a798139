"""Settings that cannot train, by the command line: one line, exit 2, nothing made."""

import pytest

from flows.test_experiments import edit

CANNOT = [
    ("adapter.target_modules=[query_key_value]", "query_key_value"),
    ("adapter.init_lora_weights=pissa", "adapter.init_lora_weights is 'pissa'"),
    ("adapter.use_dora=true", "adapter.use_dora is True"),
    ("adapter.bias=all", "adapter.bias is 'all'"),
    ("adapter.modules_to_save=[lm_head]", "adapter.modules_to_save is ['lm_head']"),
    ("adapter.r=0", "adapter.r is 0"),
    ("training.report_to=wandb", "wandb"),
    ("training.optim=adamw_8bit", "bitsandbytes"),
    ("training.lr_scheduler_type=cosine_with_min_lr", "min_lr"),
    ("training.train_sampling_strategy=group_by_length", "expected 'random' or 'sequential'"),
    ("training.save_only_model=true", "training.save_only_model is True"),
    ("training.eval_strategy=steps", "training.eval_strategy is 'steps'"),
    ("training.load_best_model_at_end=true", "training.load_best_model_at_end is True"),
    ("training.num_train_epochs=0", "training.num_train_epochs is 0"),
    ("training.max_steps=0", "training.max_steps is 0"),
    ("training.push_to_hub=true", "training.push_to_hub is True"),
    ("training.deepspeed=none_such.json", "none_such.json"),
    ("training.auto_find_batch_size=true", "training.auto_find_batch_size is True"),
    ("training.dataloader_persistent_workers=true", "persistent_workers"),
    ("training={dataloader_drop_last: true, per_device_train_batch_size: 64}", "a batch of 64"),
    ("method={name: moelora, experts: 3}", "adapter.r is 8"),
    ("method={name: ewc, strength: .inf}", "method.strength is inf"),
    ("adapter.target_modules='('", "no regular expression"),
    ("seed=-1", "is -1: input should be greater"),
    ("seed=4294967296", "is 4294967296: input should be less"),
]


@pytest.mark.parametrize(("override", "expected"), CANNOT, ids=[o for o, _ in CANNOT])
def test_they_are_one_line_and_nothing_is_made(
    override, expected, fails, stream, tmp_path, tiny_model
):
    edit(stream, method="sequential")
    assert expected in fails("run", stream, "--set", override)
    assert not (tmp_path / "out").exists()
    data, store = tmp_path / "colours-train.jsonl", tmp_path / "assistant"
    options = ["--name", "colours", "--model", tiny_model, "--set", override]
    assert expected in fails("learn", store, data, *options)
    assert not store.exists()


def test_what_a_diverged_task_advises_works(lcia, stream, tmp_path, tiny_model):
    data = tmp_path / "colours-train.jsonl"
    learn = ["--name", "colours", "--model", tiny_model, "--set", "dtype=float32"]
    wild = lcia("learn", tmp_path / "a", data, *learn, "--set", "training.learning_rate=1e20")
    assert wild.returncode == 1
    (told,) = [line for line in wild.stderr.splitlines() if line.startswith("task 'colours'")]
    assert "make a new one, or for a stream another output" in told
    calm = lcia("learn", tmp_path / "b", data, *learn, "--set", "training.learning_rate=1e-3")
    assert calm.returncode == 0, calm.stderr
    edit(stream, method="sequential")
    wild = lcia("run", stream, "--set", "training.learning_rate=1e20")
    assert wild.returncode == 1
    assert "sequential-seed0: task 'colours', step " in wild.stderr
    calm = lcia("run", stream, "--set", "training.learning_rate=1e-3", "--set", "output=other")
    assert calm.returncode == 0, calm.stderr
