"""What to write into each host's config, or script, so that it takes our reward."""

from __future__ import annotations

LINES: dict[str, str] = {
    "flow-factory": """rewards:
  - {name: cac, reward_model: cac_align.plugins.flow_factory.CaCReward, weight: 0.5, batch_size: 16, device: cpu,
     reward: "http://127.0.0.1:8000", fps: 16, ledger: ledger.jsonl}
  - {name: unified, reward_model: cac_align.plugins.flow_factory.UnifiedVideoReward, weight: 0.5, batch_size: 16, device: cpu,
     reward: "http://127.0.0.1:8000", fps: 16, ledger: ledger.jsonl}
train: {advantage_aggregation: sum}""",
    "flow_grpo": """config.reward_fn = {"cac": 0.5, "unifiedreward_video": 0.5}
accelerate launch … -m cac_align.plugins.flow_grpo --reward http://127.0.0.1:8000 --ledger ledger.jsonl scripts/train_wan2_1.py --config …""",
    "unirl": """cac_reward:
  _target_: unirl.reward.service.RewardService
  backend:
    _target_: cac_align.plugins.unirl.CaCBackend
    base_device: cpu
    config: {_target_: cac_align.plugins.unirl.CaCSpec, reward: "http://127.0.0.1:8000", fps: 16, ledger: ledger.jsonl}
reward: ${cac_reward}""",
    "verl-omni": """reward.reward_manager.name=MultiVisualRewardManager
+reward.reward_functions.cac.path=pkg://cac_align.plugins.verl_omni
+reward.reward_functions.cac.name=compute_score
+reward.reward_functions.cac.weight=1.0
+reward.reward_functions.cac.required=true
+reward.reward_functions.cac.reward=http://127.0.0.1:8000
+reward.reward_functions.cac.fps=16""",
    "videoalign": """from cac_align.plugins.videoalign import VideoVLMRewardInference
inferencer = VideoVLMRewardInference("http://127.0.0.1:8000", fps=16, ledger="ledger.jsonl")""",
    "trl": """from cac_align.plugins.trl import VideoReward
trainer = GRPOTrainer(..., reward_funcs=[VideoReward(reward="http://127.0.0.1:8000", fps=16, ledger="ledger.jsonl")])""",
}
