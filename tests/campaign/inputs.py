"""Generated inputs, the same for a seed everywhere: ``python -m campaign.inputs --help``."""

import argparse
import bz2
import copy
import gzip
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

import click
import yaml
from typer.main import get_command

from lcia.cli.main import app

TEXTS = (
    *("", " ", "\n", "\x00", "\x1b[2J", "\u2028", "\u0085", "\ufeff", "é", "日本語", "🙂", "a\rb"),
    *("null", "true", "0", "-1", "1e999", "NaN", "../../etc/passwd", "/dev/zero", "~", "${HOME}"),
    *("<image>", "{}", "[]", "%s", "a" * 5000, "${NO_SUCH}/x", "<|end|>", "{{ x }}", "a: b", "%"),
)
NUMBERS = (0, 1, -1, 2, 2**31, 2**63, -(2**63) - 1, 10**30, 10**400, 0.5, -0.0, 1e-320, 1e308)
FLOATS = (float("nan"), float("inf"), -float("inf"))


def deep(depth, kind=list):
    """A value nested so deep."""
    value = kind()
    for _ in range(depth):
        value = [value] if kind is list else {"a": value}
    return value


def odd(random, *, floats=True):
    """Any value."""
    choice = random.randrange(10)
    if choice < 3:
        return random.choice(TEXTS)
    if choice < 5:
        return random.choice((*NUMBERS, *FLOATS) if floats else NUMBERS)
    if choice == 5:
        return random.choice((None, True, False))
    if choice == 6:
        return [odd(random, floats=floats) for _ in range(random.randrange(4))]
    if choice == 7:
        return {
            random.choice(TEXTS): odd(random, floats=floats) for _ in range(random.randrange(4))
        }
    if choice == 8:
        return deep(random.choice((3, 30, 200)), random.choice((list, dict)))
    return random.choice(([], {}, [[]], [{}], [None], {"": None}, "x" * 100))


def places(tree):
    """Every (container, key) in a tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in list(items):
        yield tree, key
        if isinstance(value, dict | list):
            yield from places(value)


def mutated(random, tree, *, keys=(), floats=True):
    """A copy with up to three changes: values swapped, keys gone, renamed, new or repeated."""
    tree = copy.deepcopy(tree)
    for _ in range(random.choice((0, 1, 1, 1, 2, 3))):
        found = list(places(tree))
        if not found:
            break
        parent, key = random.choice(found)
        change = random.randrange(7)
        if change <= 2:
            parent[key] = odd(random, floats=floats)
        elif change == 3:
            del parent[key]
        elif change == 4:
            other, name = random.choice(found)
            parent[key] = copy.deepcopy(other.get(name) if isinstance(other, dict) else tree)
        elif isinstance(parent, dict):
            name = random.choice((*keys, *TEXTS[:14]))
            parent[name] = parent.pop(key) if change == 5 else odd(random, floats=floats)
        else:
            parent.insert(key, copy.deepcopy(parent[key]))
    return tree


WORDS = (
    *("-1", "0", "1", "2", "999999999999999999999", "1e5", "nan", "inf", "-inf", "0.5", "--", "-"),
    *(
        "a=b",
        "=",
        "a=",
        "=b",
        "bot=assistant",
        "bot=bot",
        "colours",
        "g1",
        "g2",
        "g9",
        "cpu",
        "vllm",
    ),
    *("messages", "llava", "exact_match", "rougeL", "svd", "first_line", "infer", "readers"),
    *("127.0.0.1", "0.0.0.0", "http://[", "http://localhost:1", "file:///etc/passwd", "\udcff"),
)
SERVERS = ("serve", "gateway")
"""They would wait for clients: they are given no store."""


def verbs(command=None, names=()):
    """Every verb, its names before it."""
    command = command or get_command(app)
    for name, sub in getattr(command, "commands", {}).items():
        yield from verbs(sub, (*names, name))
    if not getattr(command, "commands", None):
        yield names, command


VERBS = list(verbs())


def line(random, place):
    """The arguments of a command; ``place`` names paths."""
    if random.random() < 0.05:
        words = [random.choice(place.words(random)) for _ in range(random.randrange(4))]
        return [word for word in words if word not in (*SERVERS, "demo", "worker")]
    names, command = random.choice(VERBS)
    chosen = list(names)
    for parameter in command.params:
        wanted = parameter.required if random.random() < 0.9 else random.random() < 0.3
        if parameter.name in ("debug", "help") or not (wanted or random.random() < 0.2):
            continue
        if isinstance(parameter, click.Option):
            option = random.choice([*parameter.opts, *parameter.secondary_opts])
            chosen += [option] if parameter.is_flag else [option, _value(random, names, place)]
        else:
            chosen.append(_value(random, names, place))
    if names in (("run",), ("demo",)) and "--dry-run" not in chosen:
        chosen.append("--dry-run")
    if names == ("worker",) and "--once" not in chosen:  # else it waits for jobs
        chosen.append("--once")
    if random.random() < 0.05:
        chosen.insert(random.randrange(len(chosen) + 1), random.choice(TEXTS).replace("\x00", ""))
    return chosen


def _value(random, names, place):
    if names[0] in SERVERS:
        return random.choice([p for p in place.paths if p != str(place.store)] + list(WORDS))
    if random.random() < 0.45:
        return str(place.store)
    return random.choice(place.words(random))


KEYS = (
    *("model", "tasks", "stream", "superni", "method", "methods", "rule", "rules", "grouping"),
    *("groupings", "adapter", "training", "projector", "quantize", "generation", "gate", "dtype"),
    *("seed", "seeds", "orders", "output", "held_out", "name", "train", "test", "scorer", "roles"),
    *("max_train", "max_test", "format", "images", "instruction", "max_new_tokens", "label"),
    *("threshold", "similarity", "groups", "r", "lora_alpha", "learning_rate", "max_steps"),
    *("target_modules", "batch_size", "max_prompt_tokens", "max_drop", "mode", "root", "split"),
)
LINES = (
    "a: &a [x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b, *b, *b]\n"
    "d: &d [*c, *c, *c, *c, *c, *c, *c, *c]\ne: &e [*d, *d, *d, *d, *d, *d, *d, *d]\n"
    "f: &f [*e, *e, *e, *e, *e, *e, *e, *e]\ng: &g [*f, *f, *f, *f, *f, *f, *f, *f]\n"
    "training: &h [*g, *g, *g, *g, *g, *g, *g, *g]",
    'x: !!python/object/apply:os.system ["touch pwned"]',
    "x: !!python/name:os.system",
    *("adapter: &a {target_modules: *a}", "methods: &a [*a]", "grouping: &g {x: *g}", "x: *none"),
    *("? [a, b]\n: c", "? {a: b}\n: c", "<<: 3", "<<: [1]", "<<: {seed: 1}", "model: &m\n  <<: *m"),
    *("x: 2020-13-45", "x: 2020-01-01", "seed: 2020-01-01", "x: !!int foo", "x: !!float bar"),
    *("x: !!binary '*'", "x: !!timestamp 1", "x: !!set {a, b}", "x: !!omap [a]", "x: !!bool maybe"),
    *(
        "x: 1:30:00",
        "x: 0x",
        "x: 0b2",
        "x: 1_000",
        "seed: 0o17",
        "x: .nan",
        "seed: .inf",
        "x: =",
        "=",
    ),
    *("\tx: 1", "x: '", 'x: "\\ud800"', 'model: "\\ud800"', 'output: "\\0"', "x: \x00", "x: \x07"),
    *(
        "- a",
        "%YAML 9.9\n---",
        "---\na: 1\n---\nb: 2",
        "x: {",
        "x: [" * 3_000,
        "x: " + "{a: " * 2_000,
    ),
    *("1: 2", "null: 3", "true: 4", "1.5: x", "seed: " + "9" * 5_000, "x: " + "a" * 100_000),
    *("on: off", "model: off", "methods: off", "seeds: [" + "1, " * 2_000 + "1]", "output: [..]"),
    "orders: {a: [colours, numbers], a: [numbers, colours]}",
)


def text(random, valid):
    """A stream file as a text; ``valid`` is one as a tree."""
    tree = mutated(random, valid, keys=KEYS)
    try:
        written = yaml.safe_dump(tree, sort_keys=False, allow_unicode=random.random() < 0.5)
    except (ValueError, yaml.YAMLError):
        written = yaml.safe_dump(valid, sort_keys=False)
    if random.random() < 0.4:
        written += random.choice(LINES) + "\n"
    elif random.random() < 0.2:
        at = random.randrange(len(written))
        written = written[:at] + random.choice((*TEXTS, "!", "&", "*", "\t", ":")) + written[at:]
    return written


def settings(random):
    """Options ``--set``, mostly none."""
    found = []
    for _ in range(random.choice((0, 0, 0, 1, 2))):
        path = ".".join(
            random.choice((*KEYS, "0", "-1", "9", "", "x", "é"))
            for _ in range(random.randint(1, 3))
        )
        value = random.choice(
            (*map(str, NUMBERS), *map(str, FLOATS), *TEXTS, "[]", "{}", "[", "&a")
        )
        value = random.choice((value, random.choice(LINES)))
        sign = random.choice(("=", "=", "=", "=", "", "=="))
        found += ["--set", f"{path}{sign}{value}".replace("\x00", "")]
    return found


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Capital of Peru?"},
    {"role": "assistant", "content": "Lima", "weight": 1},
]
RECORDS = (
    {"id": "a", "messages": CHAT, "answers": ["Lima"], "instruction": "Capital"},
    {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "text", "text": "What?"}, {"type": "image", "image": "x.png"}],
            },
            CHAT[2],
        ]
    },
    {"prompt": "Capital of Peru?", "completion": ["Lima", "lima"], "system": "Be brief."},
    {"prompt": CHAT[:2], "completion": CHAT[2:], "answers": ["Lima"]},
    {"instruction": "Translate.", "input": "cat", "output": "Katze", "history": [["a", "b"]]},
    {"Definition": ["Name."], "Instances": [{"id": "i", "input": "Peru", "output": ["Lima"]}]},
    {
        "id": "1",
        "image": ["x.png"],
        "conversations": [
            {"from": "human", "value": "<image>\nWhat?"},
            {"from": "gpt", "value": "cat"},
            {"from": "human", "value": "And?"},
            {"from": "gpt", "value": "dog", "weight": 0},
        ],
    },
    {"question_id": 7, "image": "x.png", "text": "What?", "answer": ["a", "a"]},
)
FIELDS = (
    *(
        "messages",
        "prompt",
        "completion",
        "conversations",
        "role",
        "content",
        "from",
        "value",
        "id",
    ),
    *("weight", "label", "tools", "tool_calls", "history", "system", "image", "images", "text"),
    *("Instances", "Definition", "answers", "answer", "question_id", "input", "output", "type"),
)
RAW = (b"NaN", b"-Infinity", b"1e999", b"9" * 6000, b"[" * 100_000, b'{"a":' * 50_000, b"null")
BYTES = (b"\x00", b"\xff", b"\xe2\x80\xa8", b"\xc2\x85", b"\xed\xa0\x80", b"\\ud800", b"\r", b"\n",
         b"\xef\xbb\xbf", b'"', b"{", b"}", b",", b"\xf0\x9f", b"\x1b[2J")  # fmt: skip
ENCODINGS = ("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1")
MAGIC = (b"PK\x03\x04", b"PAR1", b"ARROW1", b"\x28\xb5\x2f\xfd", b"\x80\x04", b"\x89PNG\r\n")


def content(random):
    """The bytes of a data file."""
    record = random.choice(RECORDS)
    count = random.choice((1, 2, 6, 12))
    records = [mutated(random, record, keys=FIELDS) for _ in range(count)]
    if random.random() < 0.2:
        records[random.randrange(count)] = mutated(random, random.choice(RECORDS), keys=FIELDS)
    ascii_only = random.random() < 0.5
    if random.random() < 0.7:
        text = "\n".join(json.dumps(one, ensure_ascii=ascii_only) for one in records) + "\n"
    else:
        text = json.dumps(records, ensure_ascii=ascii_only, indent=random.choice((None, 2)))
    if random.random() < 0.1:
        text = text.replace("\n", "\r\n")
    written = text.encode(random.choice(ENCODINGS), "replace")
    return _damaged(random, written) if random.random() < 0.5 else written


def _damaged(random, written):
    at = random.randrange(len(written) + 1)
    change = random.randrange(10)
    if change == 0:
        return written[:at]
    if change == 1:
        return random.choice((b"", b" ", b"\n\n", b"[]", b"{}", b"null", b"\xef\xbb\xbf", b"[" * 9))
    if change == 2:
        return random.choice((gzip.compress, bz2.compress))(written)
    if change == 3:
        return random.choice(MAGIC) + written
    if change == 4 and b":" in written:
        head, _, tail = written.partition(b": ")
        return head + b": " + random.choice(RAW) + tail[tail.find(b",") :]
    if change == 5:
        return written.replace(b'{"', b'{"id": 1, "id": 2, "', 1)
    if change == 6:
        return written[:at] + random.randbytes(20) + written[at:]
    if change == 7:
        return b"prompt,completion\n" + written
    if change == 8 and written:
        i = random.randrange(len(written))
        return written[:i] + bytes([written[i] ^ (1 << random.randrange(8))]) + written[i + 1 :]
    return written[:at] + random.choice(BYTES) + written[at:]


KINDS = {"data": 0.5, "config": 0.3, "arguments": 0.2}
"""What is generated, and its share."""


def cases(place, count, *, seed=0, kinds=KINDS):
    """Yield (name, what tries it) of ``count`` inputs; it returns what is wrong, or None."""
    for kind in kinds:
        for i in range(round(count * KINDS[kind])):
            yield (
                f"{kind} {seed}/{i}",
                lambda k=kind, n=i: getattr(place, k)(Random(f"{k} {seed}/{n}")),
            )


def main():
    """Try them and print what is wrong."""
    from campaign.place import Place
    from conftest import save_tiny_model

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS, action="append")
    parser.add_argument("--only", type=int, help="number of one input of --kind")
    options = parser.parse_args()
    started, wrong, tried = time.monotonic(), 0, Counter()
    with tempfile.TemporaryDirectory() as scratch:
        place = Place(Path(scratch), save_tiny_model(Path(scratch) / "tiny"))
        for name, case in cases(
            place, options.count, seed=options.seed, kinds=options.kind or KINDS
        ):
            if options.only is not None and name.rpartition("/")[2] != str(options.only):
                continue
            tried[name.split()[0]] += 1
            begun = time.monotonic()
            problem = case()
            if time.monotonic() - begun > 5:
                print(f"{name}: slow, {time.monotonic() - begun:.1f} s", flush=True)  # noqa: T201
            if problem:
                wrong += 1
                print(f"{name}: {problem}", flush=True)  # noqa: T201
    seconds = time.monotonic() - started
    print(f"{dict(tried)}: {wrong} wrong, {seconds:.0f} s")  # noqa: T201


if __name__ == "__main__":
    main()
