"""What containers there are, whatever runs them, and whose a cgroup is."""
