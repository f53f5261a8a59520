"""gapeval_lab: knowledge manipulation in unified multimodal models, measured in both directions."""

__version__ = "0.1.0"
