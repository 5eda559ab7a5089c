"""`make bench`: how fast Reattach is on this machine, beside what the machine itself can do."""
