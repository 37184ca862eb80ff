"""Equilibria of energies: energies × relaxations × estimators, complex states, and implicit gradients."""
