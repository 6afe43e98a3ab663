"""Attacks of torchattacks for autoshield-bench."""
