#!/bin/sh
# GRPO of HunyuanVideo in DanceGRPO with UnifiedReward + CaC.
# What changes in its scripts/finetune/finetune_hunyuan_grpo.sh is the launcher.
# 1. cac-align serve --reward recipes/reward/qwen3vl_8b_server.yaml
# Before: CAC_ALIGN_REWARD=http://127.0.0.1:8000 CAC_ALIGN_FPS=24 cac-align doctor --host videoalign --config THIS_FILE
# Every key is our whole reward: this trainer adds vq_coef x VQ and mq_coef x MQ, and the SkyReels script
# (train_grpo_skyreels_i2v.py, the same launcher) reads MQ alone.
# CAC_ALIGN_FPS is the videos' true rate; --fps is only the rate that is written into their files.
# Do not train Wan with train_grpo_wan_2_1.py: every GPU trains a copy of its own (its issue 110), which
# cac-align doctor --ranks shows.
CAC_ALIGN_REWARD=http://127.0.0.1:8000 CAC_ALIGN_FPS=24 CAC_ALIGN_LEDGER=ledger.jsonl \
torchrun --nnodes=4 --nproc_per_node=8 -m cac_align.plugins.videoalign fastvideo/train_grpo_hunyuan.py \
  --use_videoalign --vq_coef 1.0 --mq_coef 0.0 --fps 24 \
  "$@"
