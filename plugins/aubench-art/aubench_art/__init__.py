"""The Adversarial Robustness Toolbox (ART) for autoshield-bench."""
