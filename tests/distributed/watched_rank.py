"""lcia's command line, with an eye on the answering: slow, failing or killed, as asked.

watched_rank.py COUNTS NAME=VALUE... -- ARGUMENTS...

Every batch of held-out samples that a process answers is a line in COUNTS. ``slow=S`` makes each
last S more seconds, ``score=S`` each scoring; ``raise=R`` or ``kill=R`` ends process R at its
second, and notes when in COUNTS-ended.
"""

import json
import os
import signal
import sys
import time

from lcia.cli.main import main
from lcia.evaluation import generate as evaluation
from lcia.models.host import AdapterHost

rank = os.environ.get("RANK", "0")
counts = sys.argv[1]
end = sys.argv.index("--")
how = dict(word.split("=") for word in sys.argv[2:end])
sys.argv[1 : end + 1] = []
generate = AdapterHost.generate
done = 0


def watched(self, conversations, adapters, **options):
    global done
    done += 1
    time.sleep(float(how.get("slow", 0)))
    if done == 2 and rank in (how.get("raise"), how.get("kill")):
        with open(f"{counts}-ended", "w") as file:
            file.write(str(time.time()))
    if done == 2 and how.get("raise") == rank:
        raise ValueError("the second batch is too much")
    if done == 2 and how.get("kill") == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    texts = generate(self, conversations, adapters, **options)
    asked = [
        [conversation[-1].content, adapter[0] if adapter else None]
        for conversation, adapter in zip(conversations, adapters, strict=True)
    ]
    with open(counts, "a") as file:
        file.write(json.dumps({"rank": rank, "asked": asked}) + "\n")
    return texts


def slowly(*arguments):
    time.sleep(float(how.get("score", 0)))
    return score_each(*arguments)


score_each, evaluation.score_each = evaluation.score_each, slowly
AdapterHost.generate = watched
main()
