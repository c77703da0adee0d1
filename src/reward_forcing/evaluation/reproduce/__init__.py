"""The paper's ablation (Reward Forcing, Table 3) in miniature: trained, measured, and held to what the paper claims."""
