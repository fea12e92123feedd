"""What agents are measured by, where they stand, and the leaderboard."""
