#!/bin/sh
# GRPO of Wan-2.1 in Pref-GRPO with UnifiedReward + CaC.
# What changes in its scripts/lora/lora_ur_flex_prefgrpo_wan21.sh.
# 1. cac-align serve --reward recipes/reward/qwen3vl_8b_server.yaml
# Before: CAC_ALIGN_REWARD=http://127.0.0.1:8000 cac-align doctor --host pref-grpo --config THIS_FILE
# Ours are the launcher and, in the last line of flags, the reward and the groups within a prompt.
CAC_ALIGN_REWARD=http://127.0.0.1:8000 CAC_ALIGN_LEDGER=ledger.jsonl \
torchrun --nnodes=1 --nproc_per_node=8 -m cac_align.plugins.pref_grpo fastvideo/train_wan21.py \
  --use_lora --lora_rank 32 --lora_alpha 64 \
  --pretrained_model_name_or_path Wan-AI/Wan2.1-T2V-1.3B-Diffusers \
  --vae_model_path Wan-AI/Wan2.1-T2V-1.3B-Diffusers \
  --data_json_path data/train_data_wan2.1/rl_embeddings/videos2caption.json \
  --train_batch_size 1 --gradient_accumulation_steps 2 --learning_rate 1e-4 \
  --output_dir outputs/cac --h 480 --w 832 --t 81 --sampling_steps 50 --eta 0.3 \
  --cfg_infer 5.0 --checkpointing_steps 10 --timestep_fraction 0.8 \
  --num_generations 16 --use_group --reward_spec videoalign:1.0 \
  "$@"
