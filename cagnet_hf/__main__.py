"""`accelerate launch -m cagnet_hf COMMAND`: several processes where there is no clone with its scripts."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
