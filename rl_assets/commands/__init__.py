"""One module per command. A command reads its options, calls the domain and shows the answer; it decides nothing.

Imports that take long (NumPy, torch, Dagster, rich) stand inside the functions, so that `--help` answers at once.
"""
