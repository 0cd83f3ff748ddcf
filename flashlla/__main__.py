"""``python -m flashlla`` is the command ``flashlla``."""

import sys

from flashlla.cli import main

sys.exit(main())
