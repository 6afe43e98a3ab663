"""Runs a plan: train, fit, attack, score; what an attack may see; and what the host checks of what came back."""
