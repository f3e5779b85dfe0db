"""Sessions in which a user types: a training on several devices is not for them."""

from __future__ import annotations

import sys

from swaa.config import FineTuning
from swaa.errors import UserError


def refuse_several_devices(config: FineTuning) -> None:
    """Refuse what would start processes from a notebook or an interactive session, or end it with them.

    Raises:
        UserError: this is such a session, and the training is for several devices.
    """
    count = config.trainer.devices * config.trainer.num_nodes
    if count > 1 and (hasattr(sys, "ps1") or sys.flags.interactive):
        raise UserError(
            f"trainer: {count} devices need a process each, and a notebook or an interactive session cannot be one of "
            "them. Write the settings to a file (config.to_yaml()) and run: swaa finetune FILE; or train on one device."
        )
