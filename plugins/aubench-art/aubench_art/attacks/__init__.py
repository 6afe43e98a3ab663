"""Attacks of ART behind the contract of autoshield-bench. The library is imported when an attack runs."""
