"""Remove the backdoor from an image classifier with one clean image a class."""

from unbackdoor import methods
from unbackdoor._errors import UnbackdoorError
from unbackdoor._normalize import Normalize
from unbackdoor._purify import Purified, purify
from unbackdoor._report import Report
from unbackdoor._version import __version__

__all__ = ["Normalize", "Purified", "Report", "UnbackdoorError", "__version__", "methods", "purify"]
