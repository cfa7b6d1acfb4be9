# SPDX-License-Identifier: Apache-2.0
"""The folder of a trained run with a fake configuration and pipeline."""

from __future__ import annotations

from types import SimpleNamespace

from pmni_nerfstudio.training import trained_run as run_module


def fake_config(folder, monkeypatch):
    """Paths of a config and a checkpoint; the pipeline accepts any state that has no key `bad`."""

    def load_pipeline(state, step):
        if "bad" in state:
            raise RuntimeError("Error(s) in loading state_dict:\n\tsize mismatch")

    pipeline = SimpleNamespace(eval=lambda: None, load_pipeline=load_pipeline)
    manager = SimpleNamespace(data=None, dataparser=SimpleNamespace(data=None))
    config = SimpleNamespace(
        relative_model_dir="models",
        pipeline=SimpleNamespace(setup=lambda device, test_mode: pipeline, datamanager=manager),
    )
    monkeypatch.setattr(run_module, "read_config", lambda path: config)
    (folder / "models").mkdir()
    return folder / "config.yml", folder / "models" / "step-000000007.ckpt"
