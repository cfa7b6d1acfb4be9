# SPDX-License-Identifier: Apache-2.0
"""Panel of the live page."""

from __future__ import annotations

import numpy as np
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


def test_the_bars_have_the_names_of_the_views_and_appear_with_the_first_values():
    server = viser.ViserServer(port=free_port(), verbose=False)
    try:
        panel = Panel(server, ["left", "right"], ["refined"], Controls(lambda: None, lambda: None, None, None))
        unknown = np.full(2, np.nan)
        panel.show_views(unknown, np.zeros(2), "what it is")
        assert not panel._plot.visible and panel._plot_note.content == ""
        panel.show_views(np.array([1.0, np.nan]), np.zeros(2), "what it is")
        assert panel._plot.visible and panel._plot_note.content == "what it is"
        assert list(panel._figure.data[0].x) == ["left", "right"] and list(panel._figure.data[0].y) == [1.0, None]
        assert panel._figure.layout.xaxis.showticklabels is None  # that is, shown
        panel.show_end(["Verdict: registration ok", "Next: pmni export --load-config a_b"])
        assert "**Training has ended.**" in panel._stage.content and "a\\_b" in panel._stage.content
        assert not panel._progress.visible
        panel.show_legend("angular error", "0 to 30 deg", np.zeros((2, 3, 3), dtype=np.uint8))
        assert "0 to 30 deg" in panel._legend.content and "data:image/png" in panel._legend.content
        panel.show_legend("shaded", "", None)
        assert panel._legend.content == ""
    finally:
        server.stop()


def test_a_page_that_may_write_no_files_has_no_button_and_says_why():
    server = viser.ViserServer(port=free_port(), verbose=False)
    try:
        panel = Panel(server, ["00"], ["refined"], Controls(lambda: None, lambda: None, None, None))
        assert panel._buttons == [] and "--viewer.websocket-host 127.0.0.1" in panel._message.content
    finally:
        server.stop()
