"""DynamicEMACallback inside TRL's SFTTrainer, against a loop written by hand."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ema_reference import trajectory
from lcia.integrations import DynamicEMACallback

trl = pytest.importorskip("trl", reason="trl is not installed (pip install lcia[test])")
datasets = pytest.importorskip("datasets")

STEPS, BATCH, ACCUMULATION, RATE, CLIP = 6, 2, 3, 0.01, 0.5
ROWS = [
    {"prompt": f"{word} {i} is", "completion": " a colour" if i % 2 else " short"}
    for i, word in enumerate(["red", "green", "blue", "white"] * 9)
]


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def batches(folder):
    """Token ids and labels of each row in order, padded by batch; only answers are learned."""
    tokenizer, out = AutoTokenizer.from_pretrained(folder), []
    for start in range(0, len(ROWS), BATCH):
        pairs = []
        for row in ROWS[start : start + BATCH]:
            prompt = tokenizer(row["prompt"])["input_ids"]
            answer = tokenizer(row["completion"])["input_ids"] + [tokenizer.eos_token_id]
            pairs.append((prompt + answer, [-100] * len(prompt) + answer))
        longest = max(len(ids) for ids, _ in pairs)
        ids, labels = torch.zeros(2, len(pairs), longest, dtype=torch.long)
        labels.fill_(-100)
        mask = torch.zeros_like(ids)
        for i, (row_ids, row_labels) in enumerate(pairs):
            ids[i, : len(row_ids)] = torch.tensor(row_ids)
            labels[i, : len(row_labels)] = torch.tensor(row_labels)
            mask[i, : len(row_ids)] = 1
        out.append((ids, mask, labels))
    return out


def by_hand(folder, *, rule):
    """Train without Trainer; return the averages of the float64 reference after the last step."""
    model = load(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    start = {n: p.detach().double().numpy().copy() for n, p in model.named_parameters()}
    seen = {name: [] for name in start}
    data = iter(batches(folder))
    for _ in range(STEPS):
        pieces = [next(data) for _ in range(ACCUMULATION)]
        answers = sum(int((labels[:, 1:] != -100).sum()) for _, _, labels in pieces)
        for ids, mask, labels in pieces:
            logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
            )
            (loss / answers).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        for name, p in model.named_parameters():
            seen[name].append((p.detach().double().numpy().copy(), p.grad.double().numpy().copy()))
        optimizer.zero_grad()
    return {name: trajectory(rule, start[name], seen[name])[-1] for name in start}


@pytest.mark.parametrize("rule", ["release", "paper"])
def test_sft_trainer_equals_a_loop_by_hand_and_logs_the_weight(tiny_model, tmp_path, rule):
    model = load(tiny_model)
    settings = trl.SFTConfig(
        str(tmp_path),
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=ACCUMULATION,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        max_grad_norm=CLIP,
        train_sampling_strategy="sequential",
        logging_steps=2,
        save_steps=STEPS,
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = trl.SFTTrainer(
        model=model,
        args=settings,
        train_dataset=datasets.Dataset.from_list(ROWS),
        processing_class=AutoTokenizer.from_pretrained(tiny_model),
    )
    callback = DynamicEMACallback(rule=rule).attach(trainer)
    trainer.train()

    expected = by_hand(tiny_model, rule=rule)
    for name, parameter in model.named_parameters():
        average = torch.from_numpy(expected[name]).view_as(parameter)
        close = 1e-4 * float(average.abs().max())
        torch.testing.assert_close(parameter.detach().double(), average, rtol=0, atol=close)
    assert callback.summary()["steps"] == STEPS  # not STEPS * ACCUMULATION
    assert callback.ema.stats().counts["closed_form"] > 0
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert [log["step"] for log in logs] == [2, 4, 6]
    assert all(0 <= log["ema/beta_mean"] < 1 and log["ema/drift"] > 0 for log in logs)
    saved = json.loads((tmp_path / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    assert saved["log_history"][0]["ema/beta_mean"] == logs[0]["ema/beta_mean"]
    assert (tmp_path / f"checkpoint-{STEPS}" / "dynamic_ema.safetensors").is_file()
