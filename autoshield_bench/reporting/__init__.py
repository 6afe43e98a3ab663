"""Results for people: tables on a terminal, tables for papers, and the files of ``derived/``."""
