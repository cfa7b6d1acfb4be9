# SPDX-License-Identifier: Apache-2.0
"""What several test modules share: scenes with known ground truth, browsers, servers and short training runs."""
