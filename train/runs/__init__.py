"""Run folders: what they hold, and loading what was trained."""
