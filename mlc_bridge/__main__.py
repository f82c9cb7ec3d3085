"""``python -m mlc_bridge``: the command line."""

from mlc_bridge.cli import main

main()
