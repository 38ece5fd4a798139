"""What a store has come to, and whether it is whole."""

import hashlib
import json

VOLATILE = ("seconds", "environment", "sha256", "files", "earlier", "time", "eta_s", "sum")
"""Keys that tell times and machines, and hashes of files that do."""


def end_state(root):
    """Every file by its hash, without times and what hashes times; unfinished runs do not count.

    Of candidates that the gate refused, the task counts: a command that is repeated after it ended
    may refuse once more.
    """
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        top, _, rest = name.partition("/")
        if not path.is_file() or name == ".lock" or top in ("runs", "refused"):
            if top == "refused" and rest:
                found[f"refused/{rest.partition('-')[2].partition('/')[0]}"] = ""
            continue
        content = path.read_bytes()
        if path.suffix == ".json":
            content = json.dumps(_plain(json.loads(content)), sort_keys=True).encode()
        elif path.name == "journal.jsonl":
            events = [_plain(json.loads(line)) for line in content.split(b"\n") if line]
            # A step is told again after a resume; only its last telling counts.
            steps = {e.get("step"): e for e in events if e.get("event") == "step"}
            content = json.dumps(list(steps.values()), sort_keys=True).encode()
        found[name] = hashlib.sha256(content).hexdigest()[:16]
    return found


def verified(root):
    """Open and verify a store; return what is wrong, or None."""
    from lcia.errors import LciaError
    from lcia.learner import Store
    from lcia.store.verify import verify

    try:
        Store.open(root)
        findings = verify(root)
    except LciaError as error:
        return f"does not open: {error}"
    return f"verify: {findings[0]}" if findings else None


def difference(scenario, root, out):
    """Compare with the undisturbed end; return the first file that differs, or None."""
    pairs = ((end_state(root), scenario.after),)
    if scenario.out:
        pairs += ((end_state(out), scenario.out),)
    for found, expected in pairs:
        for name in sorted(found.keys() | expected.keys()):
            if found.get(name) != expected.get(name):
                return f"{name} differs from the undisturbed one"
    leftovers = [path.name for path in root.parent.iterdir() if path not in (root, out)]
    return f"left beside the store: {', '.join(leftovers)}" if leftovers else None


def _plain(value):
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if k not in VOLATILE}
    return [_plain(item) for item in value] if isinstance(value, list) else value
