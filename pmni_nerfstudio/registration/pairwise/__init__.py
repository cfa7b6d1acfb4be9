# SPDX-License-Identifier: Apache-2.0
"""Pairwise and multiway Sim(3) registration of integrated depth maps, and ring hypotheses where no poses are known."""
