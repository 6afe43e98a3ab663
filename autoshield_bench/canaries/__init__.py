"""Defenses that are wrong in known ways, and sound ones beside them: what the checks that gate a rank are tried on."""
