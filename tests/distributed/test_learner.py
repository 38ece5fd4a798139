"""The same command under torchrun: two processes teach one assistant."""

import json
import os
import socket
import subprocess
import sys

import pytest

from lcia.learner import Store


@pytest.mark.parametrize(
    "sharding", ["", "fsdp: true, fsdp_config: {version: 2}"], ids=["ddp", "fsdp2"]
)
def test_two_processes_learn_a_stream_into_one_store(
    sharding, tmp_path, tiny_model, colours, shades
):
    entries = []
    for task in (colours, shades):
        with (tmp_path / f"{task.name}.jsonl").open("w") as file:
            for sample in task.train:
                record = {"prompt": sample.prompt, "completion": sample.answers[0]}
                file.write(json.dumps(record) + "\n")
        entries.append(f"{{name: {task.name}, train: {task.name}.jsonl, instruction: first_line}}")
    (tmp_path / "stream.yaml").write_text(
        f"model: {tiny_model}\ndtype: float32\ntasks: [{', '.join(entries)}]\noutput: out\n"
        "training: {num_train_epochs: 2, learning_rate: 0.01, save_steps: 1,\n"
        "           per_device_train_batch_size: 2, use_cpu: true, ddp_backend: gloo,\n"
        f"           {sharding}}}\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, "--master_port", str(port), "-m", "lcia", "run", "stream.yaml"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=300,
    )
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
