"""lcia's command line, with something that happens to process 1 after the third step.

failing_rank.py raise|kill|disk ARGUMENTS...
"""

import os
import resource
import signal
import sys

from transformers import TrainerCallback

from lcia.cli.main import main
from lcia.methods.lcia import Lcia


class Fails(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step != 3 or os.environ["RANK"] != "1":
            return
        if how == "raise":
            raise ValueError("the third step is too much")
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))


attach = Lcia.attach
Lcia.attach = lambda self, trainer, context: (
    attach(self, trainer, context),
    trainer.add_callback(Fails()),
)
how = sys.argv.pop(1)
main()
