"""The configuration of Nemotron 3 Nano 30B-A3B as it is released."""

from hetjax.models import MambaConfig, MoEConfig, NemotronHConfig

NANO = NemotronHConfig(
    pattern="MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
    vocab_size=131072,
    width=2688,
    heads=32,
    kv_heads=2,
    head_dim=128,
    mamba=MambaConfig(heads=64, head_dim=64, groups=8, state=128),
    experts=MoEConfig(
        count=128, top_k=6, activation="relu2", shared_width=3712, scores="sigmoid", factor=2.5, bias_rate=1e-3
    ),
    expert_width=1856,
)
