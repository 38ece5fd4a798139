"""Corruption: ``lcia verify`` finds every flipped bit, and names the file and what to do."""

import random


def files(root):
    """Every file that a version consists of."""
    return [path for path in sorted(root.rglob("*")) if path.is_file() and path.name != ".lock"]


def places(path, rng, at_most):
    """Places in a file to flip a bit at: all, or the first, the last and some between."""
    size = path.stat().st_size
    if size <= at_most:
        return list(range(size))
    return sorted({0, size - 1, *(rng.randrange(size) for _ in range(at_most - 2))})


def flip(root, path, place, bit):
    """Flip one bit, verify, put it back; return what is wrong, or None."""
    from lcia.store.verify import verify

    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[place] ^= 1 << bit
    path.write_bytes(bytes(damaged))
    try:
        findings = verify(root)
    finally:
        path.write_bytes(content)
    if not findings:
        return f"bit {bit}: not found"
    return (
        None if any(path.name in line for line in findings) else f"not named: {findings[0][:200]}"
    )


def flips(root, *, per_file, seed=0):
    """Yield every flip to try."""
    rng = random.Random(seed)
    for path in files(root):
        for place in places(path, rng, per_file):
            yield path, place, rng.randrange(8)
