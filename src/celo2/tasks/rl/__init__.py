"""Reinforcement learning: PPO on MinAtar games."""
