"""The processes of one training run: which one this is, and what is said between them.

Whoever starts them gives each ``RANK``, ``LOCAL_RANK``, ``WORLD_SIZE``, ``MASTER_ADDR`` and ``MASTER_PORT``, as
``accelerate launch`` does. ``tasks/ranks.py`` also hands over a socket that listens on the loopback device only.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, overload

from training.settings import Profile
from training.strict import Refused

if TYPE_CHECKING:
    from torch import Tensor

# A dead peer is noticed at once; this is for one that hangs. One process may write or score for long while others wait.
TIMEOUT = timedelta(minutes=30)

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """Process ``rank`` of ``size``; ``device`` is where its tensors are. Every method is called by all or by none."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @classmethod
    def current(cls, profile: Profile) -> "World":
        """Join the other processes of this run. Raises Refused where there are not as many as the profile says."""
        started = int(os.environ.get("WORLD_SIZE", 1))
        if started != profile.processes:
            raise Refused(
                f"the profile says processes: {profile.processes} and {started} were started; start it through alignmill, "
                f"or with accelerate launch --num_processes {profile.processes}"
            )
        if started == 1:
            return cls(device=profile.device)
        from accelerate import PartialState

        state = PartialState(cpu=profile.device == "cpu", timeout=TIMEOUT, **_store())
        return cls(state.process_index, state.num_processes, str(state.device))

    @property
    def main(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    @overload
    def sum(self, values: "Tensor") -> "Tensor": ...

    @overload
    def sum(self, values: Mapping[str, float]) -> dict[str, float]: ...

    def sum(self, values: Any) -> Any:
        """The sum over all processes: of a tensor (same shape and dtype everywhere), or by name, where a name that a
        process does not have counts 0 there and numbers are added in the order of ranks."""
        import torch

        if isinstance(values, torch.Tensor):
            if self.size == 1:
                return values
            total = values.detach().to(self.device, copy=True)
            torch.distributed.all_reduce(total)
            return total.to(values.device)
        added: dict[str, float] = {}
        for known in self.share(dict(values)):
            for name, value in known.items():
                added[name] = added.get(name, 0.0) + value
        return added

    def share(self, value: T) -> list[T]:
        """Every process's value (anything that pickles), in the order of ranks."""
        if self.size == 1:
            return [value]
        import torch

        found: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(found, value)
        return found

    def from_main(self, value: T) -> T:
        """The main process's value."""
        return self.share(value if self.main else None)[0]  # type: ignore[return-value]

    def wait(self) -> None:
        """Return when all have come here."""
        if self.size > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()


def _store() -> dict[str, Any]:
    """Where the processes meet, if they were started by ``tasks/ranks.py``; else the environment says it."""
    port = os.environ.get("ALIGNMILL_STORE_PORT")
    if port is None:
        return {}
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    descriptor = int(os.environ["ALIGNMILL_STORE_SOCKET"]) if rank == 0 else None
    store = TCPStore(
        "127.0.0.1",
        int(port),
        size,
        is_master=rank == 0,
        timeout=TIMEOUT,
        wait_for_workers=False,
        master_listen_fd=descriptor,
    )
    return {"store": store, "rank": rank, "world_size": size}
