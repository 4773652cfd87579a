"""Tasks: what a network's output means. One file each; a new one is its file and a line of `TASKS`."""

from typing import Annotated

from pydantic import AfterValidator

from zsq.tasks.base import Meter, Scores, Task, Truth
from zsq.tasks.classify import Classify
from zsq.tasks.detect import Detect
from zsq.tasks.embed import Embed
from zsq.tasks.image import Image
from zsq.tasks.other import Other
from zsq.tasks.regress import Regress
from zsq.tasks.segment import Segment

TASKS: dict[str, type[Task]] = {
    "classify": Classify,
    "embed": Embed,
    "image": Image,
    "segment": Segment,
    "detect": Detect,
    "regress": Regress,
    "other": Other,
}


def _known(name: str) -> str:
    if name not in TASKS:
        raise ValueError(f"one of {', '.join(TASKS)}")
    return name


# The name of a task in a card or record.
TaskName = Annotated[str, AfterValidator(_known)]

__all__ = ["TASKS", "Meter", "Scores", "Task", "TaskName", "Truth"]
