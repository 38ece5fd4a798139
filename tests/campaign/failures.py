"""No space, no permission, a read-only disk, too many files: from each call on."""

import errno

from campaign.crashes import settled
from campaign.driver import FAIL
from campaign.states import difference, end_state, verified

ERRORS = {
    "no space": errno.ENOSPC,
    "no permission": errno.EACCES,
    "read-only": errno.EROFS,
    "too many files": errno.EMFILE,
}


def fail(stores, scenario, error, at):
    """Let that call and all after it fail; return what is wrong with what follows, or None."""
    root, out = stores.place(scenario.before)
    before = end_state(root) if scenario.before is not None else {}
    argv = stores.filled(scenario.argv, root, out)
    done = stores.driver.run(
        *argv,
        folder=root.parent,
        mode=FAIL,
        at=at,
        error=ERRORS[error],
        opens=error == "too many files",
    )
    if done.hung:
        return "hung"
    if done.code == scenario.code == 0:
        return None if difference(scenario, root, out) is None else "ended well, and is not whole"
    if done.code not in (1, 2) or len(done.lines) != 1:
        return f"exit {done.code}, {len(done.lines)} lines: {' | '.join(done.lines)[:300]}"
    if scenario.before is not None:
        if problem := verified(root):
            return f"after the failure: {problem}"
        wanted = before.keys() & scenario.after.keys()
        lost = [name for name in sorted(wanted) if not (root / name).is_file()]
        if lost:
            return f"lost {lost[0]}"
    again = stores.driver.run(*argv)
    if again.code != scenario.code and not settled(scenario, again):
        return f"once there is room: exit {again.code}: {' '.join(again.lines)}"
    return difference(scenario, root, out)
