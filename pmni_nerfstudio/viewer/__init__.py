# SPDX-License-Identifier: Apache-2.0
"""Pages in the browser, with viser: the live page of a training run, and `pmni view` for results on disk."""
