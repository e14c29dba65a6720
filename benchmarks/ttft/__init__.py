"""The TTFT table of SGLang pull request 14726, with this project's policies and emulated compute.

published.py    what the pull request says         workload.py    arrivals, rooms and lengths of a seed
simulation.py   dispatcher and lock-step ranks     cost.py        the cost model's two parameters
fit.py          finds them: cost_model.json        figures.py     from seeds to means and intervals
stack.py        the same with the real stack       generator.py   SGLang's load generator without a GPU
run.py          all of it: results/ttft.json       page.py        docs/ttft.md and its plot, from that
"""
