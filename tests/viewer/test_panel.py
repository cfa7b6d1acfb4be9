# SPDX-License-Identifier: Apache-2.0
"""Panel of the live page."""

from __future__ import annotations

import viser
from helpers.serving import free_port

from pmni_nerfstudio.viewer.panel import Controls, Panel


def test_the_verdict_is_shown_with_its_reasons_as_plain_text():
    server = viser.ViserServer(port=free_port(), verbose=False)
    try:
        nothing = Controls(lambda: None, lambda: None, lambda: "", None)
        panel = Panel(server, ["00", "01"], ["refined"], nothing)
        assert panel._verdict.content == ""
        panel.show_verdict("failed", ["view *01* does not fit", "another"])
        assert panel._verdict.content == "Registration: **failed**\n\n- view \\*01\\* does not fit\n- another"
    finally:
        server.stop()


def test_a_page_that_may_write_no_files_has_no_button_and_says_why():
    server = viser.ViserServer(port=free_port(), verbose=False)
    try:
        panel = Panel(server, ["00"], ["refined"], Controls(lambda: None, lambda: None, None, None))
        assert panel._buttons == [] and "--viewer.websocket-host 127.0.0.1" in panel._message.content
    finally:
        server.stop()
