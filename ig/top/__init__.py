"""What `ig top` shows: the traffic of an interval by pair, and the screen that it is drawn on."""
