# SPDX-License-Identifier: Apache-2.0
"""Training: trainer, start-up with registration, schedules, early stopping, checkpoints, and loading of trained runs."""
