"""``python -m autoshield_bench`` is ``aubench``."""

import sys

from autoshield_bench.cli.main import main

sys.exit(main())
