"""Answers are the same alone and in any company; places, queues and time are bounded."""

import queue
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoTokenizer,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from lcia.data import Message
from lcia.errors import ConfigError, ModelError, StoreError
from lcia.models import AdapterHost, BaseModel
from lcia.serving.engine import batch as batch_module
from lcia.serving.engine import scheduler as scheduler_module
from lcia.serving.engine.engine import Engine, check_model
from lcia.serving.engine.job import Job
from lcia.serving.engine.limits import (
    EngineLimits,
    GenerationFailedError,
    GenerationTimeoutError,
    QueueFullError,
)
from lcia.serving.engine.sampling import Sampling

ENGINE = Path(batch_module.__file__).parent
PROMPTS = ["one", "a much longer prompt, so that rows are padded", "two words", "x" * 50, "é€ 語"]


def by_peft(host, text, adapter, *, max_new_tokens=12):
    turns = (Message(role="user", content=text),)
    return host.generate([turns], [adapter], max_new_tokens=max_new_tokens)[0]


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_every_answer_equals_the_one_given_alone_by_peft(asker, host, adapters):
    cases = [
        (prompt, adapter, 3 + 7 * ((i + j) % 3))
        for i, prompt in enumerate(PROMPTS)
        for j, adapter in enumerate([None, *adapters])
    ]
    jobs = []
    for prompt, adapter, length in cases:
        jobs.append(asker.submit(prompt, adapter, max_new_tokens=length))
        time.sleep(0.003 * (len(jobs) % 4))  # joins happen at any moment
    answers = [asker.read(job)[0].strip() for job in jobs]
    assert len(asker.engine.bank.loaded) == 2
    asker.engine.stop()
    expected = [by_peft(host, p, a, max_new_tokens=n) for p, a, n in cases]
    assert answers == expected
    assert len(set(expected)) > 15, "adapters do something"


def test_the_context_is_what_the_model_reads_unless_someone_says_less(base, start):
    assert base.facts.positions == 512
    asker = start(base)
    assert asker.engine.limits.context == 512
    _, delta = asker.read(asker.submit("x" * 400, max_new_tokens=400))
    assert delta.finish_reason == "length" and delta.tokens == 512 - 404
    assert start(base, max_context=64).engine.limits.context == 64
    with pytest.raises(ConfigError, match="--max-context 513: the model reads 512 tokens"):
        Engine(base, limits=EngineLimits(max_context=513))
    assert EngineLimits().fitted(131_072).context == 2048


def test_a_long_prompt_is_read_in_pieces_while_others_go_on(asker, host, adapters, monkeypatch):
    monkeypatch.setattr(batch_module, "PREFILL_TOKENS", 16)
    monkeypatch.setattr(scheduler_module, "PREFILL_TOKENS", 16)
    first = asker.submit("go on", adapters[0], max_new_tokens=200)
    first.heard.get(timeout=30)
    long = asker.submit("y" * 300, adapters[1])
    before = len(first.tokens)
    answer, delta = asker.read(long)
    assert len(first.tokens) - before >= 300 // 16, "a token for every piece"
    asker.engine.stop()
    assert answer.strip() == by_peft(host, "y" * 300, adapters[1])
    assert (delta.tokens, delta.finish_reason) == (12, "length")


def test_sliding_windows_hold_in_a_batch(start, tiny_model):
    torch.manual_seed(1)
    config = MistralConfig(
        vocab_size=260,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=8,
        eos_token_id=0,
        pad_token_id=0,
    )
    tokenizer = AutoTokenizer.from_pretrained(tiny_model, padding_side="left")
    base = BaseModel(name="m", model=MistralForCausalLM(config).eval(), tokenizer=tokenizer)
    expected = [by_peft(AdapterHost(base), p, None) for p in PROMPTS]
    asker = start(base)
    jobs = [asker.submit(p) for p in PROMPTS]
    assert [asker.read(job)[0].strip() for job in jobs] == expected


def test_a_cancelled_answer_frees_its_place(asker, adapters):
    jobs = [asker.submit("go on", adapters[0], max_new_tokens=400) for _ in range(6)]
    wait_for(lambda: asker.engine.running == 4 and asker.engine.waiting == 2)
    for job in (jobs[0], jobs[5]):
        asker.engine.cancel(job)
    wait_for(lambda: asker.engine.running == 4 and asker.engine.waiting == 0)
    assert [asker.read(jobs[i])[1].finish_reason for i in (0, 5)] == ["cancelled"] * 2
    for job in jobs[1:5]:
        asker.engine.cancel(job)
    wait_for(lambda: asker.engine.running == 0)
    assert jobs[0].heard.empty(), "nothing after the last event"
    assert not asker.engine.bank._users
    assert asker.ask("go on", adapters[0])


def test_too_many_waiting_requests_are_refused(start, base):
    asker = start(base, max_batch=1, max_waiting=2)
    jobs = [asker.submit("go on", max_new_tokens=400)]
    wait_for(lambda: asker.engine.running == 1)
    jobs += [asker.submit("go on") for _ in range(2)]
    with pytest.raises(QueueFullError, match="2 requests are waiting; try again in") as refused:
        asker.submit("one more")
    assert 1 <= refused.value.retry_after_s <= 60
    asker.engine.cancel(jobs[0])
    assert all(asker.read(job)[1].finish_reason for job in jobs[1:])


def test_an_answer_has_its_time(start, base):
    asker = start(base, max_batch=1)
    first = asker.submit("go on", max_new_tokens=400, timeout_s=0.05)
    second = asker.submit("waits", max_new_tokens=4, timeout_s=0.01)
    for job in (first, second):
        assert isinstance(asker.read(job)[1].error, GenerationTimeoutError)
    assert asker.ask("go on", max_new_tokens=4)


def test_stop_strings_and_the_seed(asker, host):
    whole = asker.ask("tell me", max_new_tokens=40)
    stop = whole[5:7]
    text, delta = asker.read(asker.submit("tell me", max_new_tokens=40, stops=(stop, "never")))
    assert text == whole[: whole.index(stop)]
    assert delta.finish_reason == "stop"

    def drawn(seed):
        return asker.ask("tell me", sampling=Sampling(temperature=1.5, top_p=0.95, seed=seed))

    assert drawn(1) == drawn(1) != drawn(2)


def test_a_damaged_adapter_fails_its_own_request_only(asker, adapters, tmp_path):
    bad = asker.submit("one", ("bad@0001", tmp_path))
    good = asker.submit("one", adapters[0])
    assert isinstance(asker.read(bad)[1].error, StoreError)
    assert asker.read(good)[1].finish_reason


def test_a_failing_step_is_told_and_the_engine_goes_on(asker, adapters, monkeypatch):
    expected = asker.ask("one", adapters[0])

    def broken(*args, **kwargs):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(asker.engine.batch, "forward", broken)
        assert "out of memory" in str(asker.read(asker.submit("one", adapters[0]))[1].error)
    assert asker.ask("one", adapters[0]) == expected
    assert not asker.engine.bank._users


def test_stopping_tells_everybody(asker):
    jobs = [asker.submit("go on", max_new_tokens=400) for _ in range(6)]
    asker.engine.stop()
    assert all("shutting down" in str(asker.read(job)[1].error) for job in jobs)


def test_two_who_stop_it_at_once_leave_the_model_as_it_came_once(asker):
    engine, left = asker.engine, []
    restored = engine.batch._restore

    def restore():
        left.append(threading.get_ident())
        time.sleep(0.2)

    engine.batch._restore = restore
    with ThreadPoolExecutor(2) as pool:
        for stopped in [pool.submit(engine.stop) for _ in range(2)]:
            stopped.result()
    restored()
    assert len(left) == 1


def test_models_with_other_state_are_refused():
    config = MambaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, state_size=2)
    with pytest.raises(ModelError, match="MambaForCausalLM has "):
        check_model(MambaForCausalLM(config))


def test_the_engine_answers_from_python_without_a_server(base, host, adapters):
    prompts = [("one", adapters[0]), ("two words", adapters[1]), ("one", None)]
    with Engine(base) as engine:
        found = engine.answer(
            [engine.prompt(t, adapter=a and a[1], max_new_tokens=12) for t, a in prompts]
        )
    assert [text.strip() for text in found] == [by_peft(host, *case) for case in prompts]


def test_no_http_in_the_engine():
    code = (
        "import sys, importlib\n"
        "import accelerate, peft, transformers.generation\n"  # an older hub imports httpx
        "sys.modules.update(dict.fromkeys(['fastapi', 'uvicorn', 'starlette', 'httpx']))\n"
        f"for name in {[path.stem for path in ENGINE.glob('*.py')]}:\n"
        "    importlib.import_module(f'lcia.serving.engine.{name}'.removesuffix('.__init__'))\n"
        "assert not [m for m in sys.modules if m.startswith('lcia.serving.http')]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class Panic(BaseException):
    """What a panic in Rust raises; it is no Exception."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_panic_while_a_prompt_is_prepared_ends_that_request_alone(asker):
    good = asker.submit("one").prompt

    def panic():
        raise Panic

    for prepare in (*[panic] * (asker.engine.limits.preparing + 1), lambda: good):
        heard = queue.Queue()
        job = Job(listener=heard.put, prepare=prepare)
        job.heard = heard
        asker.engine.submit(job)
        last = asker.read(job)[1]
        if prepare is panic:
            assert isinstance(last.error, GenerationFailedError)
        else:
            assert last.finish_reason in ("stop", "length")
