"""Machines of tests as network namespaces on a bridge: what is cut off, lost, delayed, stopped and killed is real."""
