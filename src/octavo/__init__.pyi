from octavo._version import __version__
from octavo.api import LLM
from octavo.backends.base import RuntimeConfig
from octavo.engine.request import SamplingParams

__all__ = ["LLM", "RuntimeConfig", "SamplingParams", "__version__"]
