"""For each host, the lines of its config or script that make it take our reward, and how it passes
videos.
"""

from __future__ import annotations

CONFIG_LINES: dict[str, str] = {
    "flow-factory": """rewards:
  - {name: cac, reward_model: cac_align.plugins.flow_factory.CaCReward, weight: 0.5, batch_size: 16, device: cpu,
     reward: "http://127.0.0.1:8000", fps: 16, ledger: ledger.jsonl}
  - {name: unified, reward_model: cac_align.plugins.flow_factory.UnifiedVideoReward, weight: 0.5, batch_size: 16,
     device: cpu, reward: "http://127.0.0.1:8000", fps: 16, ledger: ledger.jsonl}
train: {advantage_aggregation: sum}""",
    "flow_grpo": """config.reward_fn = {"cac": 0.5, "unifiedreward_video": 0.5}
accelerate launch … -m cac_align.plugins.flow_grpo --reward http://127.0.0.1:8000 --ledger ledger.jsonl \\
    scripts/train_wan2_1.py --config …""",
    "unirl": """cac_reward:
  _target_: unirl.reward.service.RewardService
  backend:
    _target_: cac_align.plugins.unirl.CaCBackend
    base_device: cpu
    config: {_target_: cac_align.plugins.unirl.CaCSpec, reward: "http://127.0.0.1:8000", fps: 16, ledger: ledger.jsonl}
reward: ${cac_reward}""",
    "verl-omni": """reward.custom_reward_function.path=null
reward.reward_manager.name=MultiVisualRewardManager
+reward.reward_functions.cac.path=pkg://cac_align.plugins.verl_omni
+reward.reward_functions.cac.name=compute_score
+reward.reward_functions.cac.weight=1.0
+reward.reward_functions.cac.required=true
+reward.reward_functions.cac.reward=http://127.0.0.1:8000
+reward.reward_functions.cac.fps=16""",
    "videoalign": """export CAC_ALIGN_REWARD=http://127.0.0.1:8000 CAC_ALIGN_FPS=24 CAC_ALIGN_LEDGER=ledger.jsonl
torchrun … -m cac_align.plugins.videoalign fastvideo/train_grpo_hunyuan.py … --use_videoalign""",
    "trl": """from cac_align.plugins.trl import VideoReward
reward = VideoReward(reward="http://127.0.0.1:8000", fps=16, ledger="ledger.jsonl")
trainer = GRPOTrainer(..., reward_funcs=[reward])""",
    "genrl": """reward_module: cac_align.plugins.genrl
reward_fn: {cac_unified: 1.0}
eval_reward_module: cac_align.plugins.genrl
eval_reward_fn: {cac_unified_eval: 1.0}
CAC_ALIGN_REWARD=http://127.0.0.1:8000 CAC_ALIGN_LEDGER=ledger.jsonl torchrun … train.py --config …""",
    "pref-grpo": """CAC_ALIGN_REWARD=http://127.0.0.1:8000 CAC_ALIGN_LEDGER=ledger.jsonl torchrun … \\
    -m cac_align.plugins.pref_grpo fastvideo/train_wan21.py … --use_group --reward_spec videoalign:1.0""",
    "teleboost": """trainer.use_rm=false
reward.custom_reward_function.path=pkg://cac_align.plugins.teleboost
reward.custom_reward_function.name=step_rewards
+reward.custom_reward_function.reward_kwargs.reward=http://127.0.0.1:8000
+reward.custom_reward_function.reward_kwargs.fps=16""",
    "vbvr-rl": """grpo_reward_fn: cac_unified
CAC_ALIGN_REWARD=http://127.0.0.1:8000 CAC_ALIGN_LEDGER=ledger.jsonl torchrun … \\
    -m cac_align.plugins.vbvr_rl --config …""",
    "fastvideo": """method: {_target_: fastvideo.train.methods.rl.promptrl.PromptRLMethod,
         reward: {endpoint_url: "http://127.0.0.1:8100", timeout_sec: 600, fps: 16}}
CAC_ALIGN_REWARD=http://127.0.0.1:8000 CAC_ALIGN_LEDGER=ledger.jsonl \\
    python -m cac_align.plugins.fastvideo --port 8100""",
    "miles-diffusion": """CAC_ALIGN_LEDGER=ledger.jsonl python train_diffusion.py … \\
    --custom-rm-path cac_align.plugins.miles_diffusion.microgroup_rewards --rm-url http://127.0.0.1:8000 \\
    --n-samples-per-prompt 16 --diffusion-microgroup-size 16""",
}

VIDEO_LAYOUTS: dict[str, str] = {
    "flow-factory": "(T, C, H, W) float [0, 1] tensors; anything else, NaN or out of range has no score",
    "flow_grpo": "(B, T, C, H, W) float [0, 1]; anything else, NaN or out of range has no score",
    "unirl": "(C, T, H, W) float [0, 1]; anything else, NaN or out of range has no score",
    "verl-omni": "uint8 (T, C, H, W) or (C, T, H, W); state layout= where both could be 3",
    "videoalign": "files on disk; their frame rate is taken from fps=, never from the file; VQ, MQ, TA and Overall are "
    "all the whole reward, because DanceGRPO's scripts read different ones; a failure ends the run "
    "(RunStopped), because DanceGRPO turns every Exception into VQ = MQ = -1.0",
    "trl": "tensors, arrays, PIL frames or paths; a missing score raises "
    "(None only with leave_out=True on trl >= 1.10)",
    "genrl": "(B, T, C, H, W) float [0, 1]; anything else, NaN or out of range has no score",
    "pref-grpo": "mp4 files of 16 frames per second on disk; their own rate is not read",
    "teleboost": "(B, C, T, H, W) float [0, 1]; anything else, NaN or out of range has no score",
    "vbvr-rl": "latents, decoded with the trainer's VAE; what decodes to NaN has no score",
    "fastvideo": "mp4 uploads; method.reward.fps has to be the reward's fps",
    "miles-diffusion": "(C, T, H, W) floats in [0, 1] or [0, 255]; images are refused",
}
"""Per host, the videos that its adapter takes, and what becomes of others."""
