"""`python -m sdd_face` is the command `sdd-face`."""
import sys

from .cli import main

sys.exit(main())
