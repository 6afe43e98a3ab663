"""The Adversarial Robustness Toolbox (ART, Nicolae et al. 2018, arXiv:1807.01069) for autoshield-bench."""
