"""Training agents, and searching hyper-parameters for them."""
