"""Codes as bytes: in their exact width, or by their frequencies. Needs numpy only, not torch."""
