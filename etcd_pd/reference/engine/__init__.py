"""A small but real prefill/decode engine: reference and test bench, not a production engine.

One instance is an HTTP front and one process per data-parallel rank. In the data's way:

    settings.py    what one instance needs to know          launch.py     run_prefill(), run_decode()
    front.py       the front: SGLang's routes               openai.py     the /v1 routes
    requests.py    JSON bodies, checked field by field      errors.py     what a client is told
    rank_pool.py   starts rank processes, picks one, follows its requests     messages.py   front <-> rank
    rank.py        the frame of a rank process              prefill.py, decode.py   its two loops
    model.py       the language model                       decode_batch.py   decode's running batch
    lock_step.py   passes of all ranks together (emulated)
    kv.py          a request's KV cache as tensors          transfer.py   how it travels between ranks
    sampling.py    from logits to a token                   text.py       from tokens to text
    tracing.py     whether requests are traced              spans.py     how: OpenTelemetry
    tiny.py        the default model, made at first use     emulated.py   a stated cost model in its place
    reference.py   the same model without disaggregation, to compare with

Import what you need from these modules: this one stays free of torch, so that settings load at once.
"""
