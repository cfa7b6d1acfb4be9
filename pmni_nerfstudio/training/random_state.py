# SPDX-License-Identifier: Apache-2.0
"""State of the random number generators for checkpoints, as tensors and plain Python numbers that load as weights."""

from __future__ import annotations

import random
from typing import Any, Dict

import numpy as np
import torch


def random_state() -> Dict[str, Any]:
    """State of the global generators of PyTorch (with all GPUs), NumPy and Python."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(name), np.asarray(keys).tolist(), int(position), int(has_gauss), float(gauss)],
        "python": random.getstate(),
    }


def restore_random_state(state: Dict[str, Any]) -> None:
    """Restore the state of all generators; those of GPUs only if the number of GPUs is the same."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    version, values, gauss = state["python"]
    random.setstate((version, tuple(values), gauss))
