"""Why an attempt to connect failed: evidence on this host at that moment, and the cause."""
