"""How codebooks are found."""
