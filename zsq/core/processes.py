"""The processes of one job: whatever is split over them is split by rank and count."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch


@dataclass(frozen=True)
class Processes:
    """This process among those that `torchrun` or `accelerate launch` started; one alone otherwise."""

    rank: int = 0
    count: int = 1

    @property
    def local_count(self) -> int:
        """Processes of the job on this machine."""
        return min(self.count, int(os.environ.get("LOCAL_WORLD_SIZE", self.count)))

    @classmethod
    def started(cls) -> Processes:
        """Ask accelerate where several processes were started."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        from accelerate import PartialState

        # The others wait as long as rank 0 trains what they share.
        state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=7))
        return cls(state.process_index, state.num_processes)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()
