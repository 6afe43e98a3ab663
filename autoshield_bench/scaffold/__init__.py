"""``aubench new plugin``: a small distribution that installs, passes its contract test, and is yours to change."""
