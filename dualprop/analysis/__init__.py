"""Measurements of rules: alignment with back-propagation, cost, evidence, figures."""
