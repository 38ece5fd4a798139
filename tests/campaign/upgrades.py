"""Stores of every earlier schema: they open, verify, finish what was interrupted and learn on."""

import contextlib
import shutil
from pathlib import Path

import numpy as np

from campaign.driver import verified

STORES = Path(__file__).parents[1] / "fixtures" / "stores"
SUFFIX = ".tar.xz"


def schemas():
    """The names of the fixtures."""
    return sorted(path.name.removesuffix(SUFFIX) for path in STORES.glob(f"*{SUFFIX}"))


def unpack(schema, folder):
    """Put a fixture's files into a folder, and return it."""
    shutil.unpack_archive(STORES / f"{schema}{SUFFIX}", folder, filter="data")
    return folder


def place(stores, schema):
    """Unpack a fixture; return the store in it. The model lies beside it."""
    folder = stores.driver.scratch / "upgrade"
    shutil.rmtree(folder, ignore_errors=True)
    return unpack(schema, folder) / "assistant"


def learn(root, name):
    """Learn one of the fixture's tasks, as it was begun there; return what is wrong, or None."""
    from lcia.data import TaskConfig, load_task
    from lcia.errors import LciaError
    from lcia.learner import ContinualLearner, Store

    files = {split: root.parent / "data" / f"{name}-{split}.jsonl" for split in ("train", "test")}
    task = TaskConfig(name=name, **files, instruction="first_line", max_new_tokens=1)
    with contextlib.chdir(root.parent):  # its settings say ./model
        try:
            ContinualLearner(Store.open(root)).learn(load_task(task))
        except LciaError as error:
            return f"learning {name}: {error}"
    return verified(root)


def opens(stores, schema):
    """Open and verify it; nothing may be written."""
    root = place(stores, schema)
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    if problem := verified(root):
        return problem
    listed = stores.driver.run("versions", root)
    if listed.code != 0:
        return f"versions: {' '.join(listed.lines)}"
    after = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    return None if after == before else "opening it wrote"


def flips(stores, schema):
    """Flip one bit of every file of the newest store that was upgraded; each is found."""
    from campaign import damage

    root = place(stores, schema)
    done = stores.driver.run("rollback", root, "4", cwd=root.parent)
    if done.code != 0:
        return f"rollback: {' '.join(done.lines)}"
    for path, at, bit in damage.flips(root, per_file=2):
        if problem := damage.flip(root, path, at, bit):
            return f"{path.relative_to(root)}, byte {at}: {problem}"
    return None


def learns_on(stores, schema):
    """Learn one more task."""
    return learn(place(stores, schema), "more-numbers")


def same(one, other, *, to_the_bit):
    """Tell whether two adapters have the same values, or are close."""
    close = {"rtol": 0, "atol": 0} if to_the_bit else {"rtol": 1e-3, "atol": 1e-5}
    return one.keys() == other.keys() and all(
        np.allclose(one[key], other[key], **close) for key in one
    )


def resumes(stores, schema):
    """Finish the run that an earlier lcia began, as it would have: to the bit where it can be.

    Another processor rounds otherwise; six steps at this rate move values by far more.
    """
    from safetensors.numpy import load_file

    from lcia.learner import Store

    def finished(begun):
        root = place(stores, schema)
        if begun:
            shutil.copytree(root.parent / "interrupted", root / "runs", dirs_exist_ok=True)
        problem = learn(root, "tones")
        adapter = None if problem else Store.open(root).current.adapters["g1"][1]
        expected = root.parent / "expected" / "g1"
        names = sorted(path.name for path in expected.glob("*.safetensors"))
        found = {} if problem else {name: load_file(adapter / name) for name in names}
        return problem, found, {name: load_file(expected / name) for name in names}

    problem, whole, _ = finished(begun=False)
    if problem:
        return problem
    problem, resumed, expected = finished(begun=True)
    if problem:
        return problem
    exact = all(same(whole[name], expected[name], to_the_bit=True) for name in expected)
    for name, tensors in expected.items():
        if not same(resumed[name], tensors, to_the_bit=exact):
            return f"{name} differs from what the earlier lcia made"
    return None


CHECKS = {
    "opens": opens,
    "finds flipped bits once upgraded": flips,
    "learns on": learns_on,
    "resumes": resumes,
}
