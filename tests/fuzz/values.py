"""Values that nobody expects, and trees with one of them somewhere."""

import copy

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
