"""Which container connects where, how fast, and what fails."""
