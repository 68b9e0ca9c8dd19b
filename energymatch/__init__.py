"""Learn an energy from data."""
