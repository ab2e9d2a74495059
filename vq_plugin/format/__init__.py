"""The file format: what a header says, and where the bytes are. Needs numpy only, not torch."""
