"""The same command under torchrun: two processes teach one assistant."""

import json

from tests.distributed.launching import run, torchrun

from lcia.learner import Store


def write_stream(folder, tiny_model, tasks):
    entries = []
    for task in tasks:
        with (folder / f"{task.name}.jsonl").open("w") as file:
            for sample in task.train:
                record = {"prompt": sample.prompt, "completion": sample.answers[0]}
                file.write(json.dumps(record) + "\n")
        entries.append(f"{{name: {task.name}, train: {task.name}.jsonl, instruction: first_line}}")
    (folder / "stream.yaml").write_text(
        f"model: {tiny_model}\ndtype: float32\ntasks: [{', '.join(entries)}]\noutput: out\n"
        "training: {num_train_epochs: 2, learning_rate: 0.01, save_steps: 1,\n"
        f"           per_device_train_batch_size: 2, ddp_backend: gloo}}\n"
    )


def test_two_processes_learn_a_stream_into_one_store(tmp_path, tiny_model, colours, shades):
    write_stream(tmp_path, tiny_model, (colours, shades))
    done = run(torchrun("-m", "lcia", "run", "stream.yaml"), tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    store = Store.open(tmp_path / "out" / "lcia-seed0" / "assistant")
    assert [version.manifest["group"] for version in store.history()] == ["g1", "g1"]
    assert store.verify() == []
    # 13 train samples in global batches of 4: 4 steps an epoch, none twice in the journal.
    for version in store.history():
        steps = [event["step"] for event in version.journal() if event["event"] == "step"]
        assert steps == list(range(1, 9))
    assert "ema/beta_mean" in version.journal()[-2]
    assert done.stdout.count("scores:") == 2, "only one process speaks"
