"""Stream files: a valid one with something wrong in it, and ``--set`` of anything."""

import yaml

from fuzz.values import FLOATS, NUMBERS, TEXTS, mutated

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
