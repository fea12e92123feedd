"""Ways in which patches leave: the contract, and one file for each family of modes."""
