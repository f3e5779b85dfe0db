"""Lightning's strategy for FSDP2, with the checkpoints that training on one device writes and reads."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor
from torch.optim import Optimizer

from swaa.hf.lora import load_trainable_state
from swaa.hf.sharding import load_optimizer_state, whole, whole_optimizer_state


class Sharded(ModelParallelStrategy):
    """FSDP2 over all devices. The first one writes a checkpoint of whole tensors, any number of devices reads it.

    Lightning's own strategy writes files by torch.save, reads no others, and takes a folder for shards.

    Args:
        world_size: devices of all machines.
    """

    def __init__(self, world_size: int) -> None:
        super().__init__(data_parallel_size=world_size, tensor_parallel_size=1, save_distributed_checkpoint=False)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The weights that are trained, by name; empty but on the first device."""
        assert self.lightning_module is not None
        state: dict[str, Tensor] = {}
        for name, weight in self.lightning_module.named_parameters():
            if weight.requires_grad:
                gathered = whole(weight.detach())
                if self.is_global_zero:
                    state[name] = gathered.cpu()
        return state

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        plain: Any = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return whole_optimizer_state(plain, keep=self.is_global_zero)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)  # through our CheckpointIO

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read it and put weights and optimizer state where they belong; Lightning does the rest.

        Raises:
            UserError: the checkpoint is damaged, or is not one of this training.
        """
        assert self.lightning_module is not None
        checkpoint = self.checkpoint_io.load_checkpoint(checkpoint_path)
        load_trainable_state(self.lightning_module, checkpoint["state_dict"])
        for optimizer, stored in zip(self.optimizers, checkpoint["optimizer_states"], strict=False):
            load_optimizer_state(optimizer, stored)
        return checkpoint
