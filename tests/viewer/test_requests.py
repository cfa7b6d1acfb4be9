# SPDX-License-Identifier: Apache-2.0
"""Every request of the live page, and the address that it listens on."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from helpers.browser import VISER_STATISTICS, Opened
from helpers.browser import live as browser_page  # noqa: F401
from helpers.serving import free_port
from helpers.training import make_config, set_up


@pytest.mark.slow
def test_the_live_page_requests_nothing_elsewhere_but_visers_statistics(
    sphere_folder: Path,
    tmp_path: Path,
    browser_page: Opened,  # noqa: F811
):
    port = free_port()
    config = make_config("pmni", sphere_folder, tmp_path, 2, vis="viewer+tensorboard", viewer__websocket_port=port)
    trainer = set_up(config)
    with pytest.raises(OSError), socket.create_connection(("127.0.0.2", port), timeout=5):
        pass  # another address of this machine, at which a server of all addresses would answer
    browser_page.visit(f"http://127.0.0.1:{port}")
    browser_page.page.get_by_text("Export mesh now").wait_for()
    assert not browser_page.page.get_by_text("Crop center").count()
    trainer.train()
    # The page has closed; what it said last stays.
    browser_page.page.get_by_text("Training has ended; --viewer.quit-on-train-completion False").wait_for()
    assert browser_page.page.get_by_text("Next: pmni export --load-config").count()
    assert browser_page.requests == []
    assert all(url.startswith(f"{VISER_STATISTICS}gtag/js") for url in browser_page.statistics)
