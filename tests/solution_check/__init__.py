"""What `tests/check_solution.py` is made of: the catalogue of mistakes, the checks, and the process they run in."""
