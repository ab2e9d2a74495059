"""Small real models on real data, trained once and cached, for recipes, tests and benchmarks."""
