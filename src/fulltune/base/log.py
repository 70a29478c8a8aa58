"""One logger for the package: words for people go to standard error, results to standard output."""

import logging
import sys

from fulltune.base.secrets import masked
from fulltune.base.visible import visible

LOGGER = logging.getLogger("fulltune")


class _Masking(logging.Filter):
    """Stands at the logger and not at a handler, so that a library user's handlers get no secret either."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = masked(record.getMessage()), ()
        return True


LOGGER.addFilter(_Masking())


class _ForATerminal(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def speak(*, quiet: bool = False) -> None:
    """Send the package's log to standard error, as the command line does; a library user sets up their own."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_ForATerminal("%(message)s"))
    LOGGER.handlers = [handler]
    LOGGER.setLevel(logging.WARNING if quiet else logging.INFO)
    LOGGER.propagate = False
