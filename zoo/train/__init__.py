"""What the step train is made of."""
