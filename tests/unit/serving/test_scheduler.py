"""Whatever fails, is cancelled or is late: every job hears one last event, and others go on."""

import time
from concurrent.futures import Future

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lcia.data import Message
from lcia.errors import StoreError
from lcia.models import AdapterHost
from lcia.serving.engine import scheduler as scheduler_module
from lcia.serving.engine.batch import Batch, free_memory, token_bytes
from lcia.serving.engine.engine import Engine
from lcia.serving.engine.job import Job, Prompt, State
from lcia.serving.engine.limits import (
    AdapterRemovedError,
    CacheTooSmallError,
    DeviceMemoryError,
    EngineLimits,
    GenerationFailedError,
    GenerationTimeoutError,
    PromptError,
    PromptTooLongError,
)
from lcia.serving.engine.sampling import NotFiniteError, Sampling
from lcia.serving.engine.scheduler import LONG, QUEUED, Scheduler
from lcia.serving.http.api_error import api_error

TEXTS = ["one", "a much longer prompt, so that rows are padded", "x" * 60, "two words"]


class Faults:
    """Raises at chosen calls: name to the numbers of calls that fail, and with what."""

    def __init__(self, planned=()):
        self.planned = {(name, number): error for name, number, error in planned}
        self.calls = {}

    def around(self, name, function):
        def call(*args, **kwargs):
            self.calls[name] = number = self.calls.get(name, -1) + 1
            if error := self.planned.pop((name, number), None):
                raise error
            return function(*args, **kwargs)

        return call


class Bench:
    """A scheduler without threads: the test says what happens when."""

    def __init__(self, base, faults=None, **limits):
        faults = faults or Faults()
        self.chat = AdapterHost(base).chat
        self.batch = Batch(base, max_adapters=2, cache_bytes=limits.pop("cache_bytes", None))
        self.heard, self.jobs, self.faults = {}, [], faults
        self.scheduler = Scheduler(
            self.batch,
            answering=self.chat.answering,
            limits=EngineLimits(**{"max_batch": 3, "max_context": 512, **limits}),
            deliver=faults.around("deliver", self.deliver),
        )
        bank, arena = self.batch.bank, self.batch._arena
        for owner, names in {
            bank: ("acquire", "release", "select"),
            arena: ("join", "drop", "make_room"),
            self.batch: ("forward",),
        }.items():
            for name in names:
                setattr(owner, name, faults.around(name, getattr(owner, name)))

    def deliver(self, news):
        for job, delta in news:
            self.heard[job].append(delta)

    def prompt(self, text="one", adapter=None, **settings):
        ids = tuple(self.chat.encode_prompt([Message(role="user", content=text)])[0])
        return Prompt(**{"ids": ids, "adapter": adapter, "max_new_tokens": 6, **settings})

    def arrive(self, prompt, *, prepare=True, **more):
        if prepare:
            make = self.faults.around("prepare", lambda: prompt)
            job = Job(listener=print, prepare=make, **more)
        else:
            job = Job(listener=print, prompt=prompt, **more)
        self.heard[job] = []
        job.take = self.faults.around("take", job.take)
        self.scheduler.arrive(job)
        self.jobs.append(job)
        return job

    def prepare(self):
        if self.scheduler.count(State.WAITING):
            self.scheduler.prepare_next()

    def step(self):
        try:
            self.scheduler.step()
        except RuntimeError as error:
            assert "planned" in str(error)

    def finish(self):
        for _ in range(300):
            self.prepare()
            self.step()
            if not self.scheduler.count(*State):
                self.step()
                return
        raise AssertionError("a job stays for ever")

    def told(self, job):
        """Return a job's text and its last event, the only one."""
        last = [delta for delta in self.heard[job] if delta.last]
        assert len(last) == 1 and self.heard[job][-1] is last[0], self.heard[job]
        return "".join(delta.text for delta in self.heard[job]), last[0]


@pytest.fixture
def bench(base):
    benches = []

    def make(*args, **limits):
        benches.append(Bench(base, *args, **limits))
        return benches[-1]

    yield make
    for made in benches:
        made.batch.bank.detach()


@pytest.fixture(scope="module")
def alone(base, adapters):
    """What each prompt is answered with each adapter, alone."""
    found = {}
    for text in TEXTS:
        for adapter in [None, *adapters[:2]]:
            one = Bench(base)
            job = one.arrive(one.prompt(text, adapter))
            one.finish()
            found[text, adapter] = one.told(job)[0]
            one.batch.bank.detach()
    return found


CALLS = (
    *("prepare", "acquire", "release", "select", "forward", "choose", "take"),
    *("join", "drop", "make_room", "deliver"),
)
ERRORS = st.sampled_from(
    [RuntimeError("planned"), MemoryError("planned"), StoreError("planned"), KeyError("planned")]
)
faults = st.lists(st.tuples(st.sampled_from(CALLS), st.integers(0, 12), ERRORS), max_size=4).map(
    lambda planned: [f for f in planned if f[0] != "deliver" or isinstance(f[2], RuntimeError)]
)
events = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(TEXTS), st.integers(-1, 1), st.booleans()),  # arrives
        st.sampled_from(["step", "step", "prepare"]),
        st.tuples(st.sampled_from(["cancel", "late"]), st.integers(0, 7)),
    ),
    min_size=4,
    max_size=25,
)


@settings(max_examples=60)
@given(faults, events)
def test_every_job_hears_one_last_event_whatever_fails(base, adapters, alone, planned, script):
    one = Bench(base, Faults(planned))
    original = scheduler_module.choose
    scheduler_module.choose = one.faults.around("choose", original)
    asked = {}
    try:
        for event in script:
            if event == "step":
                one.step()
            elif event == "prepare":
                one.prepare()
            elif len(event) == 3:
                text, number, prepare = event
                adapter = adapters[number] if number >= 0 else None
                asked[one.arrive(one.prompt(text, adapter), prepare=prepare)] = text, adapter
            elif event[1] < len(one.jobs):
                job = one.jobs[event[1]]
                if event[0] == "cancel":
                    one.scheduler.cancel(job)
                else:
                    job.created = time.monotonic() - 2 * job.timeout_s
        one.finish()
        for job, case in asked.items():
            text, last = one.told(job)
            assert job.state is State.ENDED
            if last.finish_reason in ("stop", "length"):
                assert text == alone[case]
            elif last.error is not None:
                assert planned or isinstance(last.error, GenerationTimeoutError)
        one.faults.planned.clear()
        again = one.arrive(one.prompt(TEXTS[1], adapters[1]))
        one.finish()
        assert one.told(again)[0] == alone[TEXTS[1], adapters[1]]
        assert not one.batch.rows and not one.batch.reading and not one.batch.bank._users
        assert not one.batch._arena.lengths
    finally:
        scheduler_module.choose = original
        one.batch.bank.detach()


def test_an_error_of_one_adapter_ends_that_job_alone(bench, adapters, alone, tmp_path):
    one = bench(Faults([("acquire", 1, MemoryError())]), max_batch=8)
    good = one.arrive(one.prompt("one", adapters[0]))
    starved = one.arrive(one.prompt("one", adapters[1]))
    missing = one.arrive(one.prompt("one", ("gone@0001", tmp_path / "gone")))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "adapter_config.json").write_text("{}")
    empty = one.arrive(one.prompt("one", ("empty@0001", tmp_path / "empty")))
    last = one.arrive(one.prompt("one"))
    for _ in one.jobs:
        one.prepare()
    one.finish()
    assert isinstance(one.told(starved)[1].error, DeviceMemoryError)
    assert isinstance(one.told(missing)[1].error, AdapterRemovedError)
    assert api_error(one.told(missing)[1].error).status == 503  # asked again, a version answers
    assert "empty@0001 cannot be used" in str(one.told(empty)[1].error)
    assert api_error(one.told(empty)[1].error).status == 500
    assert one.told(good)[0] == alone["one", adapters[0]]
    assert one.told(last)[0] == alone["one", None]


def test_a_reading_that_fails_is_tried_in_halves(bench, alone):
    one = bench(max_batch=8)
    forward, refused = one.batch.forward, []

    def small_device(jobs, **inputs):
        if len(jobs) > 1 and inputs["input_ids"].shape[1] > 1:
            refused.append(len(jobs))
            raise MemoryError
        return forward(jobs, **inputs)

    one.batch.forward = small_device
    jobs = [one.arrive(one.prompt("one"), prepare=False) for _ in range(4)]
    one.finish()
    assert refused == [4, 2, 2]
    assert {one.told(job)[0] for job in jobs} == {alone["one", None]}


def test_running_out_of_memory_ends_the_youngest_half(bench, alone):
    one = bench(max_batch=4)
    forward = one.batch.forward

    def small_device(jobs, **inputs):
        if len(jobs) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(jobs, **inputs)

    first = [one.arrive(one.prompt("one"), prepare=False) for _ in range(2)]
    one.step()
    one.batch.forward = small_device
    later = [one.arrive(one.prompt(text), prepare=False) for text in TEXTS[1:3]]
    one.finish()
    assert [one.told(job)[0] for job in first] == [alone["one", None]] * 2
    for job in later:
        assert isinstance(one.told(job)[1].error, DeviceMemoryError)


def test_a_failed_forward_ends_the_batch_and_those_who_wait_go_on(bench, alone):
    one = bench(Faults([("forward", 2, RuntimeError("planned"))]), max_batch=2)
    jobs = [one.arrive(one.prompt("one"), prepare=False) for _ in range(3)]
    one.finish()
    for job in jobs[:2]:
        assert isinstance(one.told(job)[1].error, GenerationFailedError)
        assert not isinstance(one.told(job)[1].error, DeviceMemoryError)
    assert one.told(jobs[2])[0] == alone["one", None]


def test_a_row_without_numbers_ends_alone(bench, alone):
    one = bench()
    forward = one.batch.forward

    def spoiled(jobs, **inputs):
        logits = forward(jobs, **inputs).clone()
        if bad in jobs:
            logits[jobs.index(bad)] = float("nan")
        return logits

    one.batch.forward = spoiled
    good = [one.arrive(one.prompt("one"), prepare=False) for _ in range(2)]
    bad = one.arrive(one.prompt("one"), prepare=False)
    one.finish()
    assert isinstance(one.told(bad)[1].error, NotFiniteError)
    assert {one.told(job)[0] for job in good} == {alone["one", None]}


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0, top_p=0.0),
        Sampling(temperature=1.0, top_p=1e-46),
        Sampling(temperature=1e-38, top_p=0.5),
        Sampling(temperature=1e-40),
        Sampling(temperature=5e-324, top_p=5e-324),
    ],
)
def test_settings_below_what_floats_hold_take_the_likeliest_token(bench, alone, sampling):
    one = bench()
    greedy = one.arrive(one.prompt("one"), prepare=False)
    tiny = one.arrive(one.prompt("one", sampling=sampling), prepare=False)
    one.finish()
    assert one.told(tiny)[0] == one.told(greedy)[0] == alone["one", None]


@pytest.mark.parametrize(
    ("ids", "error"),
    [
        ((), PromptError),
        ((5, 99999), PromptError),
        ((-1,), PromptError),
        ((5,) * 512, PromptTooLongError),
    ],
)
def test_a_prompt_the_model_cannot_read_is_refused_alone(bench, alone, ids, error):
    one = bench()
    bad = one.arrive(one.prompt(ids=ids))
    good = one.arrive(one.prompt("one"))
    with pytest.raises(error):
        one.arrive(one.prompt(ids=ids), prepare=False)
    one.finish()
    assert isinstance(one.told(bad)[1].error, error)
    assert one.told(good)[0] == alone["one", None]


def test_an_answer_is_as_long_as_fits(bench):
    one = bench(max_context=40)
    job = one.arrive(one.prompt("one", max_new_tokens=4096))
    one.finish()
    _, last = one.told(job)
    assert last.finish_reason == "stop" or last.tokens == 40 - len(job.asked.ids)


def test_a_job_that_is_late_while_it_is_prepared_is_told(bench):
    one = bench()
    on_its_way: Future[bytes] = Future()
    job = one.arrive(one.prompt("one"), after=on_its_way, timeout_s=0.01)
    time.sleep(0.02)
    one.scheduler.wait()  # wakes up for it
    one.step()
    assert isinstance(one.told(job)[1].error, GenerationTimeoutError)
    assert on_its_way.cancelled()


def test_what_is_prepared_after_its_end_is_dropped(bench):
    one = bench()
    job = one.arrive(one.prompt("one"))
    job.prepare = lambda: (one.scheduler.cancel(job), one.step(), one.prompt("one"))[2]
    one.prepare()
    one.finish()
    assert one.told(job)[1].finish_reason == "cancelled"
    assert job.prompt is None


def test_long_prompts_leave_a_preparing_thread_to_short_ones(bench):
    one = bench(preparing=2)
    long = [one.arrive(one.prompt("one"), size=LONG + 1) for _ in range(3)]
    short = [one.arrive(one.prompt("one"), size=10) for _ in range(2)]
    begun = [one.scheduler._begin_preparing() for _ in range(3)]
    assert begun == [long[0], *short]
    assert one.scheduler._begin_preparing() is None
    assert one.scheduler.count(*QUEUED) == 5


def test_short_prompts_take_turns_with_a_long_one(bench, monkeypatch):
    from lcia.serving.engine import batch as batch_module

    for module in (batch_module, scheduler_module):
        monkeypatch.setattr(module, "PREFILL_TOKENS", 40)
    one = bench(max_batch=8)
    long = one.arrive(one.prompt("y" * 300), prepare=False)
    another = one.arrive(one.prompt("z" * 300), prepare=False)
    one.step()
    short = one.arrive(one.prompt("one"), prepare=False)
    for _ in range(3):
        one.step()
    assert short.tokens and not long.tokens
    one.finish()
    for job in (long, another, short):
        assert one.told(job)[1].finish_reason in ("stop", "length")


def test_a_first_token_does_not_wait_for_the_next_step(bench):
    one = bench()
    other = one.arrive(one.prompt("two"), prepare=False)
    one.step()
    job, forward, heard = one.arrive(one.prompt("one"), prepare=False), one.batch.forward, []

    def listening(jobs, **inputs):
        heard.append((len(jobs), len(one.heard[job]), len(one.heard[other])))
        return forward(jobs, **inputs)

    one.batch.forward = listening
    before = len(one.heard[other])
    one.step()
    assert heard == [(1, 0, before), (2, 1, before)], "told between reading and generating"
    one.finish()


def test_news_that_could_not_be_told_come_first(bench, alone):
    one = bench(Faults([("deliver", n, RuntimeError("planned")) for n in (1, 2, 3, 4)]))
    job = one.arrive(one.prompt("one"), prepare=False)
    one.step()
    for _ in range(3):
        tokens = len(job.tokens)
        with pytest.raises(RuntimeError, match="planned"):
            one.scheduler.step()
    assert len(job.tokens) == tokens, "nothing goes on without them"
    one.finish()
    assert one.told(job)[0] == alone["one", None]


@pytest.mark.parametrize("settings", [{"temperature": float("nan")}, {"temperature": -1.0}])
def test_settings_that_are_no_numbers_are_refused(settings):
    with pytest.raises(ValueError, match="temperature is"):
        Sampling(**settings)
    with pytest.raises(ValueError, match="top_p is"):
        Sampling(top_p=float("nan"))


def cells(base, tokens):
    """The bytes of so many tokens' keys and values."""
    return {"cache_bytes": tokens * token_bytes(base.model)}


def test_answers_wait_until_the_cache_has_room_and_come_out_as_they_are(bench, base, alone):
    longest = max(len(bench().prompt(text).ids) for text in TEXTS) + 6
    one = bench(max_batch=8, **cells(base, 3 * longest))
    arena = one.batch._arena
    jobs = [(text, one.arrive(one.prompt(text))) for text in TEXTS * 4]
    most = 0
    for _ in range(400):
        one.prepare()
        one.step()
        if arena.layers[0].keys is not None:
            most = max(most, arena.layers[0].keys.shape[0] * arena.layers[0].keys.shape[2])
        if not one.scheduler.count(*State):
            break
    one.step()
    assert 0 < most <= 3 * longest
    assert [one.told(job)[0] for _, job in jobs] == [alone[text, None] for text, _ in jobs]


def test_a_request_that_can_never_fit_is_refused_in_one_clear_line(bench, base, alone):
    one = bench(**cells(base, 60))
    with pytest.raises(CacheTooSmallError, match=r"this server's cache holds 60\. Ask for"):
        one.arrive(one.prompt("one", max_new_tokens=50), prepare=False)
    prepared = one.arrive(one.prompt("one", max_new_tokens=50))
    short = one.arrive(one.prompt("one"))
    one.finish()
    assert isinstance(one.told(prepared)[1].error, CacheTooSmallError)
    assert one.told(short)[0] == alone["one", None], "others go on"


def test_a_server_bounds_its_cache_unless_it_is_told_to(base):
    engine = Engine(base)
    most = free_memory(base.model.device) // token_bytes(base.model)
    assert 0 < engine.batch.cells < most
    engine.stop()
