"""Crash points: SIGKILL at every call that changes a file, then go on as if nothing had been."""

from campaign.driver import KILL, KILL_AFTER
from campaign.states import difference, verified


def points(scenario):
    """Every call to be killed before, and the writes to be killed after."""
    return [
        *((KILL, at) for at in range(scenario.calls)),
        *((KILL_AFTER, at) for at in scenario.writes),
    ]


def crash(stores, scenario, mode, at):
    """Kill the command there, check, run it again, compare; return what is wrong, or None."""
    root, out = stores.place(scenario.before)
    argv = stores.filled(scenario.argv, root, out)
    killed = stores.driver.run(*argv, folder=root.parent, mode=mode, at=at)
    if killed.code != -9:
        return f"was not killed: exit {killed.code}"
    if (root / "assistant.json").is_file():
        if problem := verified(root):
            return f"after the kill: {problem}"
    elif scenario.before is not None:
        return "the store is gone"
    again = stores.driver.run(*argv)
    if again.code != scenario.code and not settled(scenario, again):
        return f"the same command again: exit {again.code}: {' '.join(again.lines)}"
    return verified(root) or difference(scenario, root, out)


def settled(scenario, again):
    """Whether the command says of itself that it is done already.

    A change of groups, and an export, are not repeated in silence: after they took effect the same
    command has nothing to change.
    """
    return scenario.name.startswith(("groups", "export")) and again.code == 2
