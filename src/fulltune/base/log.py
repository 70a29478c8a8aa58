"""One logger for the package: words for people go to standard error, results to standard output."""

import logging
import sys

LOGGER = logging.getLogger("fulltune")


def speak(*, quiet: bool = False) -> None:
    """Send the package's log to standard error, as the command line does; a library user sets up their own."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    LOGGER.handlers = [handler]
    LOGGER.setLevel(logging.WARNING if quiet else logging.INFO)
    LOGGER.propagate = False
