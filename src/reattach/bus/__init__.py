"""What nodes tell each other of what became durable: it is speed, never truth."""
