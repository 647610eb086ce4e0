#!/bin/sh
# miles_diffusion with UnifiedReward + CaC: what changes in its scripts/run-diffusion-grpo-*.sh.
# At commit 2929e49 it trains image models only, and our function refuses images: this is for a later video model.
# 1. cac-align serve --reward recipes/reward/qwen3vl_8b_server.yaml
# Before: cac-align doctor --host miles-diffusion --config recipes/hosts/miles_diffusion.sh
# A microgroup as large as the group, so that one call holds the whole group.
CAC_ALIGN_LEDGER=ledger.jsonl python train_diffusion.py \
  --rollout-function-path miles.rollout.sglang_diffusion_rollout.generate_rollout \
  --custom-rm-path cac_align.plugins.miles_diffusion.microgroup_rewards \
  --rm-url http://127.0.0.1:8000 \
  --n-samples-per-prompt 16 \
  --diffusion-microgroup-size 16 \
  --rollout-batch-size 2 \
  --advantage-estimator grpo \
  "$@"
