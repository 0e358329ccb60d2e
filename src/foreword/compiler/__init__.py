"""From a function to a prefix for a frozen attention head, without gradient descent, with a proof. NumPy; no torch."""
