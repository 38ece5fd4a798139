"""Several processes at one store, a server that answers from it among them: no torn state."""

import json
import random
import threading
import urllib.error
import urllib.request

from campaign.driver import verified


def together(stores, seed):
    """Learners, a roll-back and others on one store, with a reader and a server beside.

    Returns:
        What is wrong, or None.
    """
    from lcia.learner import Store
    from serving_server import serving

    root, _ = stores.place(stores.base("two"))
    rng = random.Random(seed)
    commands = [
        stores.filled(stores.learn("shades"), root),
        stores.filled(stores.learn("shades"), root),
        ["rollback", str(root), "1"],
        ["groups", "rename", str(root), "g1", f"paint{seed}"],
        ["prune", str(root), "--keep-last", "1", "--yes"],
    ]
    rng.shuffle(commands)
    problems, done = [], threading.Event()
    with serving(Store.open(root)) as (url, _):
        beside = [
            threading.Thread(target=_read, args=(root, done, problems)),
            threading.Thread(target=_ask, args=(root, url, done, problems)),
        ]
        for thread in beside:
            thread.start()
        try:
            ended = stores.driver.run_together(commands)
            again = stores.driver.run(*stores.filled(stores.learn("shades"), root))
        finally:
            done.set()
            for thread in beside:
                thread.join()
    for argv, end in zip(commands, ended, strict=True):
        busy = "another process is changing this assistant" in end.err
        refused = end.code in (1, 2) and len(end.lines) == 1
        if end.code != 0 and not (busy or refused):
            problems.append(f"{argv[0]}: exit {end.code}: {end.err[-300:]}")
    if problem := verified(root):
        problems.append(problem)
    if again.code != 0:
        problems.append(f"learning on: exit {again.code}: {' '.join(again.lines)}")
    return "; ".join(problems) or None


def _read(root, done, problems):
    """Follow the store as a server does, and open it as a command does."""
    from lcia.errors import LciaError
    from lcia.learner import Store
    from lcia.serving.live import LiveStore

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


def _ask(root, url, done, problems):
    """Ask the server all the time: each answer is of a committed version, and of one only."""
    from serving_server import COLOUR, NUMBER

    said, asked = {}, 0
    while not done.is_set() or asked < 2:
        prompt = (COLOUR, NUMBER)[asked % 2]
        asked += 1
        body = {"model": "assistant", "temperature": 0, "max_tokens": 4}
        body["messages"] = [{"role": "user", "content": prompt}]
        request = urllib.request.Request(
            f"{url}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                answer = json.loads(response.read())
        except urllib.error.HTTPError as error:
            problems.append(f"the server answered {error.code}: {error.read()[:300]}")
            return
        route, text = answer["lcia"], answer["choices"][0]["message"]["content"]
        known = said.setdefault((prompt, route["adapter"]), text)
        if known != text:
            problems.append(f"{route['adapter']} said {known!r}, then {text!r}")
        manifest = root / "versions" / f"{route['version']:04d}" / "manifest.json"
        if manifest.is_file():  # else it was pruned since
            groups = json.loads(manifest.read_bytes())["groups"]
            place = str(route["adapter"]).replace("@", "/")
            if f"groups/{place}" not in {entry["adapter"] for entry in groups.values()}:
                problems.append(f"version {route['version']} answered by {route['adapter']}")
