"""Changes of placement on more machines than there are here: the real pure code, and time, network and CPU of our own.

`python -m tests.simulation` (`make simulate`) prints the table of decision 0031. All of it follows from the seed.
"""
