"""Learning from preferences and rewards: reward models, PPO, DPO, KTO on one frozen base."""
