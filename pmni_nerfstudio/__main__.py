# SPDX-License-Identifier: Apache-2.0
"""`python -m pmni_nerfstudio` runs the `pmni` command."""

from pmni_nerfstudio.cli import main

if __name__ == "__main__":
    main()
