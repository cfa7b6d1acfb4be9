# SPDX-License-Identifier: Apache-2.0
"""From scenes to poses and a first surface; knows scenes and nothing of training."""
