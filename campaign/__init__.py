"""The command line, campaigns and what comes of them: findings, minimized reproducers, replay and coverage."""
