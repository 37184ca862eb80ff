"""Equilibria: energies × relaxations × estimators, complex states, implicit gradients."""
