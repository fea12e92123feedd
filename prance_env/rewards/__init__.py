"""What a decision is worth: the formula, the price of computation, milliseconds, and functions of users."""
