"""ART's preprocessor defenses: their values are ART's own, their gradients are what a white-box attack needs."""
