"""Several processes at one store: learners, a reader, roll-backs; never a torn state."""

import random
import threading

from campaign.states import verified


def together(stores, seed):
    """Two learners and a roll-back on one store, with a reader beside; return what is wrong."""
    from lcia.errors import LciaError
    from lcia.learner import Store
    from lcia.serving.live import LiveStore

    root, _ = stores.place(stores.base("two"))
    rng = random.Random(seed)
    commands = [
        stores.filled(stores.learn("shades"), root),
        stores.filled(stores.learn("shades"), root),
        ["rollback", str(root), "1"],
        ["groups", "rename", str(root), "g1", f"paint{seed}"],
    ]
    rng.shuffle(commands)
    problems, done = [], threading.Event()

    def read():
        live = LiveStore(root)
        while not done.is_set():
            try:
                live.refresh()
                version = Store.open(root).current
                version.codebook()
                assert set(version.adapters) == {g.id for g in version.codebook().groups}
            except (LciaError, AssertionError, OSError, ValueError) as error:
                problems.append(f"a reader met: {type(error).__name__}: {error}")
                return

    reader = threading.Thread(target=read)
    reader.start()
    try:
        ended = stores.driver.run_together(commands)
    finally:
        done.set()
        reader.join()
    for argv, end in zip(commands, ended, strict=True):
        busy = "another process is changing this assistant" in end.err
        refused = end.code in (1, 2) and len(end.lines) == 1
        if end.code != 0 and not (busy or refused):
            problems.append(f"{argv[0]}: exit {end.code}: {end.err[-300:]}")
    if problem := verified(root):
        problems.append(problem)
    again = stores.driver.run(*stores.filled(stores.learn("shades"), root))
    if again.code != 0:
        problems.append(f"learning on: exit {again.code}: {' '.join(again.lines)}")
    return "; ".join(problems) or None
