"""The checks that gate a rank: they judge a worst-case estimate, not single attacks, and never edit a number."""
