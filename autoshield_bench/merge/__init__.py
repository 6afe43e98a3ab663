"""Results of one suite from several machines or parts, joined into one directory: nothing is lost, nothing averaged."""
