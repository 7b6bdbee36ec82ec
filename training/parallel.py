"""One model in one or several processes: whole in each (DDP), or its weights, gradients and moments shared out (FSDP2).

Gradients come out as the sum over all processes. FSDP2 is torch's ``fully_shard`` itself: accelerate's way to it knows
accelerators only, and on CPUs silently gives DDP.
"""

import copy
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from training.processes import World
from training.settings import Profile
from training.strict import Refused

if TYPE_CHECKING:
    from torch import Tensor


class Parallel:
    """``model`` is to be called; ``scorer`` is the module inside that was given (under FSDP2 it is the same)."""

    def __init__(self, scorer: Any, profile: Profile, world: World) -> None:
        self.scorer, self.model, self.world = scorer, scorer, world
        self.skeleton: Any = None
        if profile.activation_checkpointing:
            _checkpoint_activations(scorer)
        sharded = world.size > 1 and profile.strategy == "fsdp"
        if sharded:
            self.skeleton = _skeleton(scorer)
        if profile.dtype == "bfloat16":
            _autocast(scorer, profile)
        if sharded:
            _shard(scorer, profile, world)
        elif world.size > 1:
            self.model = _replicate(scorer, profile)

    @property
    def sharded(self) -> bool:
        return self.skeleton is not None

    def backward(self, loss: "Tensor") -> None:
        """Add to the gradients. Both ways average over processes, and a loss here is a share of a sum."""
        import torch

        torch.autograd.backward(loss * self.world.size)

    def without_exchange(self) -> AbstractContextManager[Any]:
        """For all but a step's last micro-batch: whole gradients are exchanged once a step.

        Sharded ones are exchanged with every micro-batch, because between them nobody holds all of them.
        """
        return nullcontext() if self.model is self.scorer else self.model.no_sync()

    def reshard(self) -> None:
        """Forget whole weights that a forward pass without a backward pass has left behind: they could grow stale."""
        if self.sharded:
            for module in self.scorer.modules():
                if hasattr(module, "reshard"):
                    module.reshard()

    def plain(self) -> Any:
        """The module that was given, with all trained weights, in the main process; None in the others."""
        if "forward" in vars(self.scorer):
            del self.scorer.forward
        if not self.sharded:
            return self.scorer if self.world.main else None
        self.reshard()
        return _filled(self.skeleton, self.scorer, self.world)


def _checkpoint_activations(scorer: Any) -> None:
    try:
        scorer.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    except ValueError as error:
        raise Refused(f"activation_checkpointing: this model does not support it ({error}); set it to false") from error


def _autocast(scorer: Any, profile: Profile) -> None:
    """Matrices are multiplied in bfloat16 in the forward pass of the scorer, and nowhere else: losses stay float32."""
    import torch

    # No cache of converted weights: each is used once, and a cache would keep all of a sharded model in memory.
    precision = torch.autocast(profile.device, torch.bfloat16, cache_enabled=False)
    scorer.forward = precision(scorer.forward)


def _replicate(scorer: Any, profile: Profile) -> Any:
    from accelerate import Accelerator, DistributedDataParallelKwargs

    # Parameters without a gradient are looked for in every step: a model may have some (a vision tower, say), and DDP
    # then also keeps its buckets as they were in the first step, so that a resumed run adds in the same order.
    how = DistributedDataParallelKwargs(
        find_unused_parameters=True, broadcast_buffers=False, gradient_as_bucket_view=True
    )
    accelerator = Accelerator(mixed_precision="no", cpu=profile.device == "cpu", kwargs_handlers=[how])
    with warnings.catch_warnings():
        # torch 2.13 has another name for it, which accelerate does not know yet; 2.11 knows this one only.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return accelerator.prepare_model(scorer)


def _shard(scorer: Any, profile: Profile, world: World) -> None:
    """Shard layer by layer; embeddings, the last norm and the head belong to the root and stay whole from its forward
    pass to the end of its backward pass, which is where the scorer multiplies by the head by itself."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    quantised = [name for name, value in scorer.named_parameters() if not value.is_floating_point()]
    if quantised:
        raise Refused(
            f"strategy: fsdp cannot shard 4-bit weights ({quantised[0]}, …); use strategy: ddp with lora.bits: 4, or fsdp "
            "without it"
        )
    mesh = init_device_mesh(profile.device, (world.size,))
    layers = {name for module in scorer.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    for module in reversed(list(scorer.modules())):  # the inner ones first
        if type(module).__name__ in layers and module is not scorer:
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
    fully_shard(scorer, mesh=mesh)


def _skeleton(scorer: Any) -> Any:
    """A copy without weights, to be filled when training is over: a sharded module cannot be made whole again."""
    import torch

    memo: dict[int, Any] = {
        id(value): torch.nn.Parameter(
            torch.empty(value.shape, dtype=value.dtype, device="meta"), requires_grad=value.requires_grad
        )
        for value in scorer.parameters()
    }
    return copy.deepcopy(scorer, memo)


def _filled(skeleton: Any, scorer: Any, world: World) -> Any:
    """The skeleton with the sharded scorer's weights on the CPU, in the main process; one tensor at a time."""
    import torch

    empty = dict(skeleton.named_parameters())
    whole: dict[int, Any] = {}
    for name, value in scorer.named_parameters():
        full = value.full_tensor() if hasattr(value, "full_tensor") else value
        if world.main:
            whole[id(empty[name])] = torch.nn.Parameter(full.detach().cpu(), requires_grad=value.requires_grad)
    if not world.main:
        return None
    for module in skeleton.modules():
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = whole[id(value)]
    return skeleton.to("cpu")
