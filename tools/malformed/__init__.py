"""Hundreds of damaged files, which load and work, or are refused in one sentence each."""
