# SPDX-License-Identifier: Apache-2.0
"""Synthetic captures with exact ground truth, for tests, demos and examples."""

from pmni_nerfstudio.synth.scene import SynthConfig, SynthScene, make_scene

__all__ = ["SynthConfig", "SynthScene", "make_scene"]
