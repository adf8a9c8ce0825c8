"""dabsmix: a domain-agnostic self-supervised learning benchmark.

Importing the package costs nothing: torch is loaded by the modules that compute.
"""

__version__ = "0.1.0"
