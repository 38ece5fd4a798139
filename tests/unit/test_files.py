"""Files: whole or not there, read to the letter, within limits, removed as a whole."""

import errno
import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from campaign.command import run
from lcia.errors import StoreError, WriteError
from lcia.files import (
    check_sum,
    checksums,
    discard,
    disk_error,
    place_copy,
    read_json,
    read_jsonl,
    read_sealed,
    sweep,
    write_json,
    write_jsonl,
    write_sealed,
)
from lcia.memory import release_memory

# Whatever str.splitlines takes for the end of a line, and half a surrogate pair.
SEPARATORS = "\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
ODD = [*(f"one{mark}two" for mark in SEPARATORS), "\ud83d", "\U0001f600", "\x00", "", '"\\\n']


@pytest.mark.parametrize("text", ODD, ids=ascii)
def test_any_text_comes_back_as_it_was_written(tmp_path, text):
    records = [{"text": text, text: 1}, text]
    write_jsonl(tmp_path / "a.jsonl", records)
    write_json(tmp_path / "a.json", records)
    write_sealed(tmp_path / "sealed.json", {"text": text})
    assert read_jsonl(tmp_path / "a.jsonl") == records
    assert (tmp_path / "a.jsonl").read_bytes().count(b"\n") == 2
    assert read_json(tmp_path / "a.json") == records
    assert read_sealed(tmp_path / "sealed.json") == {"text": text}
    (tmp_path / "a.json").read_bytes().decode("utf-8")


def test_any_changed_byte_of_a_sealed_record_is_found(tmp_path):
    path = tmp_path / "a.json"
    write_sealed(path, {"schema": 2, "current": 3, "text": "ä", "more": {"list": [1, None]}})
    whole = path.read_bytes()
    for place in range(len(whole)):
        for flip in (1, 2, 4, 8, 16, 32, 64, 128, 255):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
            with pytest.raises(StoreError, match=r"a\.json"):
                read_sealed(path)
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(StoreError, match=r"a\.json"):
            read_sealed(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[" * 1_000_000, "nested too deeply|expected JSON"),
        (b'{"a":' * 1_000_000, "nested too deeply|expected JSON"),
        (b"\xff\xfe", "expected JSON"),
        (b"1" * 5000, "expected JSON"),
        (b"", "expected JSON"),
        (b"{} {}", "expected JSON"),
    ],
    ids=["lists", "objects", "not utf-8", "a number", "empty", "two"],
)
def test_hostile_json_is_one_line(tmp_path, content, expected):
    (tmp_path / "a.json").write_bytes(content)
    for read in (read_json, read_jsonl, read_sealed):
        if read is read_jsonl and content in (b"",):
            continue
        with pytest.raises(StoreError, match=expected) as caught:
            read(tmp_path / "a.json")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [read_json, read_jsonl, read_sealed])
def test_an_absurd_size_is_refused_before_it_is_read(tmp_path, read):
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(StoreError, match=r"a.json: has 1,099,511,627,776 bytes; lcia reads at m"):
        read(tmp_path / "a.json")


def test_an_absurd_line_is_refused(tmp_path):
    with (tmp_path / "a.jsonl").open("wb") as file:
        file.write(b"{}\n")
        file.truncate(1 << 28)
    with pytest.raises(StoreError, match=r"a.jsonl:2: is longer than 16,777,216 bytes"):
        read_jsonl(tmp_path / "a.jsonl")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_in_place_of_a_file_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(StoreError, match="no regular file"):
        read_json(tmp_path / "a.json")


def test_placing_leaves_equal_content_untouched(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "images").mkdir(parents=True)
    (source / "a").write_text("a")
    (source / "images" / "b").write_text("b")
    place_copy(source, target)
    assert checksums(target).keys() == {"a", "images/b"}
    before = {p: p.stat().st_ino for p in target.rglob("*")}
    place_copy(source, target)
    assert {p: p.stat().st_ino for p in target.rglob("*")} == before
    (source / "images" / "b").write_text("c")
    place_copy(source, target)
    assert checksums(target) == checksums(source)
    assert os.listdir(tmp_path) == ["source", "target"] or len(os.listdir(tmp_path)) == 2


def test_a_folder_half_removed_is_never_seen_and_swept_later(tmp_path):
    """Killed at any removal of a file inside, nothing stands at the folder's name."""
    for killed_at in range(4):
        folder = tmp_path / "run"
        folder.mkdir()
        for name in "abc":
            (folder / name).write_text(name)
        code = (
            "import os, sys\n"
            "from pathlib import Path\n"
            "from lcia.files import discard\n"
            "seen = []\n"
            "def hook(event, args):\n"
            "    if event == 'os.remove':\n"
            f"        if len(seen) == {killed_at}: os._exit(9)\n"
            "        seen.append(args)\n"
            "sys.addaudithook(hook)\n"
            f"discard(Path({str(folder)!r}))\n"
        )
        done = subprocess.run([sys.executable, "-c", code])
        assert done.returncode == (9 if killed_at < 3 else 0)
        assert not folder.exists()
    assert len(os.listdir(tmp_path)) == 3
    sweep(tmp_path)
    assert os.listdir(tmp_path) == []


def test_removing_what_is_not_there_is_no_error(tmp_path):
    discard(tmp_path / "nothing")


def test_a_full_disk_is_one_line_and_leaves_the_old_content(tmp_path):
    write_json(tmp_path / "a.json", {"old": True})
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from lcia.errors import WriteError\n"
        "from lcia.files import write_json\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        f"    write_json(Path({str(tmp_path / 'a.json')!r}), 'x' * 5000)\n"
        "except WriteError as error:\n"
        "    sys.stdout.write(str(error))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "a.json: cannot be written: File too large." in done.stdout
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": True}
    assert os.listdir(tmp_path) == ["a.json"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1000


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=r"cannot be written: Not a directory\. Make it writable"):
        write_json(tmp_path / "file" / "a.json", 1)


def _full(where):
    return OSError(errno.ENOSPC, "No space left on device", where)


@pytest.mark.parametrize(
    "error",
    [
        _full("a.bin"),
        shutil.Error([("from", "to", str(_full("to")))]),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["system", "copying", "safetensors"],
)
def test_a_full_disk_is_told_with_its_remedy_whoever_met_it(error):
    assert "No space left on device. Make room and run the same command again." in str(
        disk_error(error)
    )


def test_a_checkpoint_that_torch_cannot_write_is_told_with_what_to_do(tmp_path):
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(RuntimeError) as failed:
            torch.save({"a": torch.zeros(100)}, tmp_path / "a.bin")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        signal.signal(signal.SIGXFSZ, before)
    assert "Make room for it and run the same command again." in str(disk_error(failed.value))


def test_a_file_that_safetensors_cannot_open_is_told_with_the_true_reason(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with path.open("rb") as last:
        resource.setrlimit(resource.RLIMIT_NOFILE, (last.fileno() + 1, limits[1]))
        try:
            with pytest.raises(FileNotFoundError) as failed:
                load_file(path)
            meanwhile = disk_error(failed.value)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    remedy = "Allow more open files ('ulimit -n') and run the same command again."
    assert str(meanwhile) == f"{path}: Too many open files. {remedy}"
    later = disk_error(failed.value)
    assert (
        str(later) == f"{path}: could not be opened and can be now: too many files were. {remedy}"
    )
    path.unlink()
    assert disk_error(failed.value) is None, "a file that is not there is no matter of the disk"


@pytest.mark.parametrize("error", [ValueError("28"), OSError(errno.ENOENT, "No such file", "a")])
def test_other_errors_are_not_the_disks(error):
    assert disk_error(error) is None


def test_a_record_of_absurd_size_is_refused_before_it_is_hashed(tmp_path):
    path = tmp_path / "codebook.json"
    path.touch()
    os.truncate(path, 64 << 30)
    with pytest.raises(StoreError, match="lcia reads at most"):
        check_sum(path, "0" * 64)


RECORD = {"prompt": "a", "completion": "b"}


def test_a_name_that_no_terminal_can_show_is_escaped(tmp_path):
    path = tmp_path / "\udcff.jsonl"
    path.write_text(json.dumps(RECORD))
    ended = run("data", "check", str(path))
    assert ended.code == 0, ended.err
    assert "\\udcff" in ended.out


def test_a_path_that_is_too_long_is_one_line():
    ended = run("versions", "a" * 300)
    assert ended.code == 2
    assert ended.err.endswith(": cannot be used: File name too long.\n")
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_key_of_a_data_file_cannot_steer_the_terminal(tmp_path, options):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({**RECORD, "\x1b[2J\x85": "x"}), encoding="utf-8")
    ended = run("data", "check", str(path), *options)
    assert ended.code == 0
    assert not {"\x1b", "\x85"} & set(ended.out + ended.err)
    assert "[2J" in ended.out


def test_a_pipe_as_a_data_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    ended = run("data", "check", str(tmp_path / "pipe"))
    assert ended.code == 2
    assert "it is a pipe or a device. Write its content to a file first." in ended.err


def resident_mb() -> float:
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmRSS")).split()[1]) / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="measures through /proc")
def test_freed_blocks_below_a_used_one_are_given_back():
    blocks = [bytearray(b"x") * 100_000 for _ in range(2000)]
    pin = blocks[-1]
    full = resident_mb()
    del blocks
    release_memory()
    assert resident_mb() < full - 150
    assert len(pin) == 100_000


FAULTS = """
import resource, torch
from lcia.memory import keep_freed_memory
{call}
def step():  # 64 MB: more than glibc ever keeps by itself
    return float((torch.ones(16_000_000) + 1).sum())
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(call: str) -> int:
    command = [sys.executable, "-c", FAULTS.format(call=call)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an option of glibc")
def test_freed_memory_is_not_fetched_again():
    assert faults("keep_freed_memory()") < faults("pass") / 3


HEAPS = """
import threading
from lcia.memory import bound_kept_memory
{call}
def work(ready, end):
    blocks = [bytearray(5_000) for _ in range(50)]  # from malloc, not from Python's own pools
    ready.wait()
    end.wait()
ready, end = threading.Barrier(17), threading.Event()
for _ in range(16):
    threading.Thread(target=work, args=(ready, end)).start()
ready.wait()
heaps = 0
for line in open("/proc/self/maps"):  # a thread's heap is 64 MB of addresses, aligned
    begin = int(line.split("-")[0], 16)
    heaps += begin % (1 << 26) == 0 and line.split()[1] == "rw-p" and len(line.split()) == 5
end.set()
print(heaps)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an option of glibc")
def test_a_servers_threads_share_two_heaps():
    def heaps(call: str) -> int:
        command = [sys.executable, "-c", HEAPS.format(call=call)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert heaps("bound_kept_memory()") <= 1  # the first is the main one, elsewhere
    assert heaps("pass") > 4
