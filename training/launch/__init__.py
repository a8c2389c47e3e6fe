"""Training seen from outside: starts the processes, on this machine or as a node of several, and watches them."""
