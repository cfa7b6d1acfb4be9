# SPDX-License-Identifier: Apache-2.0
"""Helpers of several test modules: scenes with known ground truth, programs, browsers and short training runs."""
