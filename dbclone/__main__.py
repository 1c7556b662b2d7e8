"""python -m dbclone"""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line; the console script `dbclone` starts here too."""
    try:
        from .cli.main import main as run

        return run()
    except KeyboardInterrupt:  # while modules are imported, too
        return 130


if __name__ == "__main__":
    sys.exit(main())
