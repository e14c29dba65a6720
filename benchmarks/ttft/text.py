"""The words of docs/ttft.md. Figures come from the results, never from here."""

from __future__ import annotations

OPENING = """\
# TTFT: what choosing prefill ranks freely is worth

SGLang pull request 14726 measured why decode should learn a request's prefill rank instead of computing it from the
room: 200 prompts of 3500 tokens, Qwen3-235B with four DP ranks, mean time to first token (TTFT) with ranks that
follow the room, and with `round_robin` and registered ranks. This page repeats that experiment with the policies of
`etcd_pd.reference.balance`. **Nothing here ran on a GPU: all compute is emulated** by a cost model with two
parameters, which was fitted on the published follows-the-room column alone and written down before the runs on this
page. The balanced column is therefore a prediction, and nothing was tuned to meet it.

"Published arrivals" has the arrivals of the published run (the load generator's default seed), and the mean over
{draws} draws of the rooms, which are not known. "Many seeds" is {seeds} seeds of arrivals and rooms. Every policy
serves the same requests of each seed; intervals are 95 %, paired by seed. TTFT is in milliseconds. The fit, to the
first published column: {saturated_requests_per_second:g} req/s where saturated, {unloaded_prefill_seconds:g} s for a
prompt alone, a root mean square of {error:.2f} between the logarithms ([the cost model](#the-cost-model)).
"""

NOT_PREDICTED = """
The published reduction is within the 95 % interval over many seeds at {inside} of the {rates} rates."""

EQUAL = """\

With equal prompts in lock-step the best that can be done is the same number of prompts on every rank in every pass,
and `round_robin` does that without looking. A policy that counts everything in flight counts the prompts of the
running pass too. Those end on all ranks at once, whatever their number, and so delay nobody; but the ranks that have
them look busy, and the prompts that wait are heaped on the others. `shortest_wait` counts only tokens whose
computation has not begun.

By how many percent mean TTFT is below `follow_bootstrap_room`'s:
"""

MIXED_OPENING = """\
`--random-range-ratio 0.1`: prompts of 350 to 3500 tokens, otherwise as above. Nothing was published of them, so that
nothing was fitted to them: the two parameters are those of equal lengths. The same rates are less load than
before, since a prompt has little more than half of the tokens. Mean TTFT, 95 % interval; the last two columns are no
policies, but show what more information would give:

- **late binding** chooses no rank before a pass starts, and then for all prompts that wait at once, the longest
  first: what a dispatcher could do that holds prompts back until a pass ends.
- **shortest passes** counts each pass of all that wait as if its tokens could be dealt out evenly, but no shorter
  than its longest prompt: no choice of ranks makes the same prompts' pass shorter. It is no strict bound of the mean,
  since the early end of a pass can be bad luck for who comes next.
"""

MIXED = """\

Where even the shortest passes miss the goal, choosing ranks better does not reach it under this cost model: what is
left is the time of the prompts themselves. To come closer takes a dispatcher that binds late, which this engine's
does not; a registry allows it, since decode learns the rank whenever it is chosen.
"""

STACK = """\
The real `sglang-router`, SGLang's own `bench_serving --pd-separated`, agents, etcd, one prefill instance with four
rank processes and one decode instance (`--compute emulated --emulated-lock-step`), in scaled time. The simulation
beside it was given the same seed and the rooms that the router drew in that run. Means over the seeds; "apart" is how
far the full stack's mean is from the simulation's, with the smallest and the largest.
"""

MODEL = """\
All compute is emulated by forward passes of `longest x (tokens of the rank that has most) + shared x (tokens of all
ranks)` seconds. With DP attention a rank computes attention for its own prompts, and the others wait for the longest;
with expert parallelism the experts are spread over the ranks and work for all tokens. A rank's part of a pass takes
whole prompts below {pass_tokens} tokens: SGLang's default of `--max-prefill-tokens`, enforced in this way when the
pull request was measured. (The published `--chunked-prefill-size`, 40000 a rank, is never reached.) Both costs follow
from two parameters: saturated throughput, **{saturated_requests_per_second:g} req/s**, and unloaded prefill time,
**{unloaded_prefill_seconds:g} s**.

They minimise the root mean square of the six logarithmic errors against the follows-the-room column, with the
arrivals of seed {seed} and {draws} draws of the rooms. Three other structures with two parameters were fitted to the
same column for comparison: a fixed time a pass in place of the shared one, and 40000 tokens a pass. Mean TTFT:
"""

MODEL_END = """\

The structure is the one that SGLang's source suggests; what two parameters leave is not corrected anywhere."""

SATURATES_EARLY = """\
The fitted instance saturates at {fitted:g} req/s, but the published one still served {served:g} at 3.2 while it
balanced: the model saturates too early, and where both columns are close to saturation it makes too little of
balance."""

WHAT_DIFFERS = """\

## What differs from the real thing

- Compute is emulated: a forward pass takes a stated time. Transfer of KV caches, decode and memory pressure, which
  the published figures contain, cost nothing in the simulation and next to nothing in the full stack.
- Ranks run in strict lock-step. SGLang's overlapped scheduler forms the next batch while one runs.
- The published run is one run. Its arrivals can be repeated if it used the generator's default seed; its rooms
  cannot.
- The full stack runs in scaled time: rates are multiplied and costs divided by a factor ({scales}), and TTFTs
  multiplied by it again. What the machine itself adds is multiplied with them.
- The published router policy was `cache_aware`. With one prefill and one decode instance there is nothing to choose.
- The full stack's prompts are token ids of synthetic text: the generator is SGLang's, the conversations not
  ShareGPT's.

## Do it again

```sh
make bench-ttft                          # everything, and this page and its plot, about 12 minutes
python -m benchmarks.ttft.fit            # fits the cost model: benchmarks/ttft/cost_model.json
python -m benchmarks.ttft.run --quick    # a few seeds and one short run of the full stack, in less than a minute
python -m benchmarks.ttft.run            # everything: benchmarks/results/ttft.json
python -m benchmarks.ttft.run --no-stack # the simulation alone; keeps what the full stack gave
python -m benchmarks.ttft.page           # this page and its plot
```

Run the others from the repository's root with `.venv/bin/python`, after `make setup`; the full stack takes SGLang's
load generator from `.venv-sglang`, which `scripts/sglang-env` makes. Leave the machine alone meanwhile.
"""
