"""Averages and merges on two processes against one, in all ways of sharding, in one start.

python -m tests.distributed.parity_ranks OUT SETTING...
"""

import json
import sys
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist

from benchmarks.speed.parity import (
    Zero,
    batches,
    compare_all,
    difference,
    dtypes,
    on_two_processes,
    start,
    take,
)
from lcia.ema import PrecisionMerge
from lcia.integrations import DeepSpeedMerge

TASKS = (slice(0, 8), slice(8, 20))


def merger(run, precision_old):
    settings = {"old_weight": 0.3, "precision_old": precision_old}
    if isinstance(run, Zero):
        return DeepSpeedMerge(run.model, run.engine.optimizer, **settings)
    return PrecisionMerge(run.model.named_parameters(), **settings)


def learn(setting, dtype):
    """Learn two tasks; return whole parameters before and after the merge, and the precision."""
    run = start(setting, rule="fixed", dtype=dtype)
    theta_old = precision = None
    for task in TASKS:
        merge = merger(run, precision)
        run.after_step = merge.accumulate
        take(run, batches(dtype)[task])
        trained = run.parameters()
        if theta_old is not None:
            merge.merge(theta_old)
        theta_old, precision = trained, merge.precision()
    return {"trained": trained, "merged": run.parameters(), "precision": precision}


def goes_on(setting, dtype):
    """Whether a state saved half-way and loaded into a new merger gives the same to the bit."""
    run = start(setting, rule="fixed", dtype=dtype)
    whole, half, resumed = (merger(run, None) for _ in range(3))
    run.after_step = lambda: (whole.accumulate(), half.accumulate())
    take(run, batches(dtype)[:3])
    resumed.load_state_dict(half.state_dict())
    run.after_step = lambda: (whole.accumulate(), resumed.accumulate())
    take(run, batches(dtype)[3:6])
    a, b = whole.precision(), resumed.precision()
    return all(bool((a[name] == b[name]).all()) for name in a)


def merges(settings):
    table = {}
    for setting in settings:
        for dtype in dtypes(setting):
            single, parallel = learn("single", dtype), learn(setting, dtype)
            cell = {part: difference(parallel[part], single[part]) for part in single}
            cell["moved_by"] = difference(single["merged"], single["trained"])
            cell["resumed_to_the_bit"] = goes_on(setting, dtype)
            table[f"{setting}/{str(dtype)[6:]}"] = cell
    return table


def all_reduces(settings):
    """How many all-reduces an update needs, of how many numbers."""
    table, real = {}, dist.all_reduce
    for setting in settings:
        run = take(start(setting, rule="paper", dtype=torch.float32), batches(torch.float32)[:2])
        calls, update = [], run.ema.update

        def counted(values, calls=calls, **kwargs):
            calls.append(values.numel())
            return real(values, **kwargs)

        def watched(update=update, counted=counted):
            with mock.patch.object(dist, "all_reduce", counted):
                update()

        run.after_step = watched
        take(run, batches(torch.float32)[2:3])
        table[setting] = calls
    return table


def everything(settings):
    return {
        "averages": compare_all(settings),
        "merges": merges(settings),
        "all_reduces": all_reduces(settings),
    }


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(on_two_processes(everything, sys.argv[2:])))
