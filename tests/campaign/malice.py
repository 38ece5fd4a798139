"""A store from a stranger: paths that leave it, links, absurd sizes and depths are refused."""

import json
import os
import struct


def _json(root, name):
    return next(iter(sorted(root.rglob(name))))


def _edit(path, change):
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record, indent=2) + "\n")


def _manifest(root):
    return sorted(root.glob("versions/*/manifest.json"))[-1]


def _adapter_path(value):
    def change(root):
        def edit(record):
            record["groups"]["g1"]["adapter"] = value

        _edit(_manifest(root), edit)

    return change


def _task_path(value):
    def change(root):
        def edit(record):
            record["tasks"][next(iter(record["tasks"]))] = value

        _edit(_manifest(root), edit)

    return change


def _replace(name, content):
    def change(root):
        _json(root, name).write_bytes(content)

    return change


def _link(name, target="/etc/passwd"):
    def change(root):
        path = _json(root, name)
        path.unlink()
        os.symlink(target, path)

    return change


def _link_folder(root):
    adapter = sorted(root.glob("groups/*/*"))[0]
    moved = root.parent / "elsewhere"
    adapter.rename(moved)
    os.symlink(moved, adapter)


def _huge(name):
    """A file of 64 GiB that takes no room."""

    def change(root):
        os.truncate(_json(root, name), 64 << 30)

    return change


def _header(size):
    return struct.pack("<Q", size) + b"{" * 64


DEEP = b"[" * 2_000_000
ATTACKS = {
    "adapter path upwards": _adapter_path("../../../../etc"),
    "adapter path absolute": _adapter_path("/etc"),
    "adapter path of another kind": _adapter_path({"a": 1}),
    "task path upwards": _task_path("tasks/../../outside"),
    "task path absolute": _task_path("/etc"),
    "adapter is a link": _link_folder,
    "weights are a link": _link("adapter_model.safetensors"),
    "manifest is a link": _link("manifest.json"),
    "samples are a link": _link("samples.jsonl"),
    "record nested two million deep": _replace("assistant.json", DEEP),
    "manifest nested two million deep": _replace("manifest.json", DEEP),
    "codebook nested two million deep": _replace("codebook.json", DEEP),
    "matrix nested two million deep": _replace("matrix.json", DEEP),
    "samples nested two million deep": _replace("samples.jsonl", DEEP),
    "record of 64 GiB": _huge("assistant.json"),
    "manifest of 64 GiB": _huge("manifest.json"),
    "codebook of 64 GiB": _huge("codebook.json"),
    "samples of 64 GiB": _huge("samples.jsonl"),
    "predictions of 64 GiB": _huge("predictions.jsonl"),
    "safetensors header of 2^63 bytes": _replace("adapter_model.safetensors", _header(1 << 63)),
    "safetensors header of 1 GiB": _replace("adapter_model.safetensors", _header(1 << 30)),
    "numbers of a million digits": _replace("matrix.json", b"[" + b"9" * 1_000_000 + b"]"),
    "record is a list": _replace("assistant.json", b"[]"),
    "record is empty": _replace("assistant.json", b""),
    "manifest is null": _replace("manifest.json", b"null"),
}


def attack(stores, name, *, limit_bytes=3 << 30):
    """Change a store so, and let commands meet it; return what is wrong, or None."""
    root, _ = stores.place(stores.base("three"))
    ATTACKS[name](root)
    for argv in (("verify", root), ("versions", root), ("learn", *stores.learn("shades")[1:])):
        filled = stores.filled(argv, root)
        done = stores.driver.run(*filled, memory_bytes=limit_bytes, timeout_s=60)
        if done.hung:
            return f"{argv[0]}: hung"
        if done.code not in (1, 2) and argv[0] == "verify":
            return f"verify: exit {done.code}: {done.err[-300:]}"
        if done.code not in (0, 1, 2) or "Traceback" in done.err or "MemoryError" in done.err:
            return f"{argv[0]}: exit {done.code}: {done.err[-300:]}"
    return None
