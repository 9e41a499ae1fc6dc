"""What can be trained: a task ties modules to a loss."""
