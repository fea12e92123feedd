"""Searching what agents are measured by: static subnets, the confidence heuristic, the per-image oracle."""
