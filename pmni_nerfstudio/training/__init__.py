# SPDX-License-Identifier: Apache-2.0
"""The training run around the model: trainer, start-up with registration, schedules, convergence, checkpoints."""
