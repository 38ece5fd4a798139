"""lcia's command line, run twice: through, then into another folder and killed in its second task.

sharded_ranks.py FACTS KILL_AT STREAM [--set ...]

FACTS gets what spreads the model on rank 0, as the model itself says, and which share of it is
there. KILL_AT is the step of the second task after which rank 1 dies; 0 for none, and then there
is no second run.
"""

import json
import os
import signal
import sys
from pathlib import Path

from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from lcia.cli.main import main
from lcia.ema.sharding import local
from lcia.integrations.deepspeed import torch_optimizer
from lcia.methods.lcia import Lcia


def whole_size(parameter):
    return getattr(parameter, "ds_numel", parameter.numel())


def size_here(parameter):
    if hasattr(parameter, "ds_id") and not parameter.numel():
        return parameter.ds_tensor.numel()
    return local(parameter).numel()


def share(parameters):
    return round(sum(map(size_here, parameters)) / sum(map(whole_size, parameters)), 2)


def facts(trainer):
    wrapped = trainer.model_wrapped
    trained = [p for p in wrapped.parameters() if p.requires_grad]
    states = torch_optimizer(trainer.optimizer).state.values()
    kept = sum(local(v).numel() for state in states for v in state.values() if v.ndim)
    return {
        "wrapped_in": type(wrapped).__name__,
        "stage": getattr(wrapped, "zero_optimization_stage", lambda: None)(),
        "dtensors": all(isinstance(p, DTensor) for p in wrapped.parameters()),
        "base model": share([p for p in wrapped.parameters() if not p.requires_grad]),
        "adapter": share(trained),
        "optimizer": round(kept / 2 / sum(map(whole_size, trained)), 2),
    }


class Watches(TrainerCallback):
    def __init__(self, trainer, context):
        self.trainer, self.context = trainer, context

    def on_step_end(self, args, state, control, **kwargs):
        if killing and self.context.task_index and state.global_step == kill_at:
            if os.environ.get("RANK") == "1":
                os.kill(os.getpid(), signal.SIGKILL)
            signal.pause()
        if state.global_step == 1 and os.environ.get("RANK", "0") == "0":
            facts_file.write_text(json.dumps(facts(self.trainer)))


attach = Lcia.attach
Lcia.attach = lambda self, trainer, context: (
    attach(self, trainer, context),
    trainer.add_callback(Watches(trainer, context)),
)
facts_file, kill_at = Path(sys.argv[1]), int(sys.argv[2])
arguments = sys.argv[3:]
for killing in (False, True)[: 1 + bool(kill_at)]:
    sys.argv[1:] = ["run", *arguments, "--set", f"output={'killed' if killing else 'through'}"]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise
