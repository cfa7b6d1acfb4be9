# SPDX-License-Identifier: Apache-2.0
"""The random generators' state, as a checkpoint holds it: tensors and Python's own numbers, which load as weights do."""

from __future__ import annotations

import random
from typing import Any, Dict

import numpy as np
import torch


def random_state() -> Dict[str, Any]:
    """Of torch (and of all its GPUs), of NumPy's global generator and of Python's."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(name), np.asarray(keys).tolist(), int(position), int(has_gauss), float(gauss)],
        "python": random.getstate(),
    }


def restore_random_state(state: Dict[str, Any]) -> None:
    """Sets them all; those of GPUs only where there are as many."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    version, values, gauss = state["python"]
    random.setstate((version, tuple(values), gauss))
