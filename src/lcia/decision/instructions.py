"""What a task's prompts say to do."""

import logging

from lcia.data.task import Task
from lcia.grouping import Extraction, InstructionRecipe, Prompt, told

logger = logging.getLogger(__name__)


def instructions_of(task: Task) -> Extraction:
    """Return the instructions of a task, and the recipe that finds them in a prompt.

    Raises:
        ConfigError: an unknown recipe.
        DataError: the recipe cannot work on the task's prompts.
    """
    return InstructionRecipe.parse(task.instruction).fit(
        [told(sample.messages) for sample in task.train],
        [sample.instruction for sample in task.train],
    )


def tell_odd_fields(task: Task, extraction: Extraction) -> None:
    """Say which samples name an instruction that their prompts do not hold."""
    named = [sample for sample in task.train if sample.instruction]
    odd = [s for s in named if not _says(told(s.messages), s.instruction or "")]
    if odd:
        logger.warning(
            "task '%s': %d of %d named instructions do not stand in their prompts; the first is "
            "sample '%s'. Nobody who asks can be routed by them: %s.",
            task.name,
            len(odd),
            len(named),
            odd[0].id,
            extraction.describe(),
        )


def _says(prompt: Prompt, instruction: str) -> bool:
    text = prompt if isinstance(prompt, str) else prompt.whole
    return " ".join(instruction.split()) in " ".join(text.split())
