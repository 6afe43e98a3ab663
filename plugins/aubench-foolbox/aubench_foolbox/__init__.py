"""Attacks of foolbox for autoshield-bench."""
