"""Measuring time and memory: networks, episodes, trainings, agents."""
