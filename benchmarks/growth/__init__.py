"""How cost grows, and what follows for a cell's owner: ``python -m benchmarks.growth.run`` writes
``benchmarks/results/scaling.json``, and from it docs/scaling.md with its plots."""
