"""Train PyTorch networks without back-propagation: dual propagation (DP) and its relatives on the user's own model."""

__version__ = "0.1.0"
