"""See the package: nothing here is called."""

from . import absent

for _name in ("causal_conv1d_fn_cpu", "causal_conv1d_update_cpu", "chunk_gated_delta_rule_cpu"):
    globals()[_name] = absent(_name)
