"""``python -m autoshield_bench`` is ``aubench``."""

import sys
from pathlib import Path

# ``-m`` puts the working directory first, where any file may have the name of a library.
if not sys.flags.safe_path and not (Path(sys.path[0]) / "autoshield_bench").is_dir():
    del sys.path[0]

from autoshield_bench.cli.main import main

sys.exit(main())
