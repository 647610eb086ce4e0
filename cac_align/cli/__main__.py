"""`python -m cac_align.cli` is `cac-align`."""

import sys

from cac_align.cli import main

sys.exit(main())
