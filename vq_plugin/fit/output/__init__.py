"""What the inputs of a layer are like, and fits that lower the error of its output."""
