"""Flow-GRPO of Wan-2.1-1.3B in flow_grpo with UnifiedReward + CaC, the paper's settings.

Lines marked (ours) are not in the paper.

1. cac-align serve --reward recipes/reward/qwen3vl_8b_server.yaml   (its own environment: transformers is old here)
2. in flow_grpo's folder:
   accelerate launch --config_file scripts/accelerate_configs/multi_gpu.yaml --num_processes 8 \\
       -m cac_align.plugins.flow_grpo --reward http://127.0.0.1:8000 --ledger ledger.jsonl \\
       scripts/train_wan2_1.py --config THIS_FILE
Before: cac-align doctor --host flow_grpo --config THIS_FILE
Its Wan kernel has no noise level (the std follows sigma), so the paper's 0.3 cannot be set here; Flow-Factory can.
"""

import ml_collections


def get_config():
    config = ml_collections.ConfigDict()
    config.run_name, config.logdir, config.save_dir = "cac", "logs", "logs/cac"
    config.dataset, config.prompt_fn, config.prompt_fn_kwargs = "dataset/cac_240", "general_ocr", {}
    config.reward_fn = {"cac": 0.5, "unifiedreward_video": 0.5}  # the mean: both already lie in [0, 1]
    config.num_epochs, config.save_freq, config.eval_freq = (
        122,
        20,
        30,
    )  # the script samples nothing in its first two epochs
    config.height, config.width, config.frames = 480, 832, 81
    config.mixed_precision, config.allow_tf32, config.seed = "bf16", True, 42  # (ours)
    config.use_lora = True  # the script itself sets rank 32, alpha 64
    config.resume_from, config.num_checkpoint_limit = None, 5
    config.debug, config.diffusion_loss, config.per_prompt_stat_tracking = False, True, True
    config.pretrained = ml_collections.ConfigDict({"model": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "revision": "main"})
    config.sample = ml_collections.ConfigDict(
        {
            "num_steps": 50,
            "eval_num_steps": 50,
            "guidance_scale": 5.0,  # (ours) Wan's own
            "train_batch_size": 2,  # (ours) 8 GPUs × 2 = one group of 16 per batch
            "num_image_per_prompt": 16,
            "num_batches_per_epoch": 2,  # (ours) 240 prompts / 120 steps
            "sample_time_per_prompt": 1,
            "test_batch_size": 2,
            "global_std": False,  # (ours)
            "kl_reward": 0,
        }
    )
    config.train = ml_collections.ConfigDict(
        {
            "batch_size": 2,
            "gradient_accumulation_steps": 2,  # one optimiser step per epoch
            "num_inner_epochs": 1,
            "timestep_fraction": 0.99,  # (ours) upstream's
            "learning_rate": 1e-4,  # (ours)
            "clip_range": 1e-3,  # (ours)
            "beta": 0.004,  # (ours) upstream's
            "adv_clip_max": 5,
            "cfg": True,
            "ema": True,
            "use_8bit_adam": False,
            "adam_beta1": 0.9,
            "adam_beta2": 0.999,
            "adam_weight_decay": 1e-4,
            "adam_epsilon": 1e-8,
            "max_grad_norm": 1.0,
            "lora_path": None,
            "sft": 0.0,
            "sft_batch_size": 3,
        }
    )
    return config
