"""What people run by hand around the package; nothing in it imports this."""
