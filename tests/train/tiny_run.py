"""Settings of a run that takes about a second per stage."""

TINY = [
    *("model.vocab_size=600", "model.hidden_dim=64", "model.num_layers=3", "model.num_heads=2", "model.q_rank=32"),
    *("model.kv_rank=32", "model.dense_dim=128", "model.num_experts=8", "model.num_chosen=2", "model.expert_dim=32"),
    *(
        "model.max_context=64",
        "data.num_stories=400",
        "data.num_solutions=100",
        "data.num_chats=200",
        "data.num_conversations=100",
        "data.held_out=0.05",
    ),
    *(
        "pretrain.steps=30",
        "pretrain.lr=1e-2",
        "pretrain.step_tokens=512",
        "pretrain.micro_tokens=256",
        "pretrain.save_every=10",
    ),
    *("sft.steps=10", "sft.step_tokens=512", "sft.micro_tokens=512", "sft.save_every=5"),
    *("data.num_tasks=300", "rl.steps=2", "rl.num_prompts=4", "rl.num_samples=4", "rl.num_eval=4"),
]
