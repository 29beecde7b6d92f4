"""`python -m mae_bench` is `mae-bench`."""

import sys

from mae_bench.cli import main

if __name__ == "__main__":
    sys.exit(main())
