"""Where the project's package and filters are imported from."""

import sys
from pathlib import Path

for folder in ("files", "plugins/filter", ".collections"):
    sys.path.append(str(Path(__file__).parents[2] / folder))
