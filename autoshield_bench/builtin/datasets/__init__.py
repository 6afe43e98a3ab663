"""The built-in data sets; importing a module here imports neither torch nor numpy."""
